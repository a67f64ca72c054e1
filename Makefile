# run    build and serve on 127.0.0.1:5000; needs no configuration file
# test   install what the tests need when it is missing, then run all of them
# lint   format, clippy and links in the docs, as strict as they go
# bench  measure against nginx and docker-registry, print the ratios
# fmt    format the source

.PHONY: run test lint bench fmt

run:
	cargo run --locked -- serve

test:
	tests/setup/packages.sh
	tests/setup/schemas.sh
	tests/setup/stores.sh cargo test --locked

lint:
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet

# In a directory of its own: `cargo bench` builds the program too, its own way, over the other one.
bench:
	tests/setup/packages.sh
	cargo build --release --locked
	cargo bench --locked --bench peers --target-dir target/bench -- --portcullis $(CURDIR)/target/release/portcullis $(BENCH_ARGS)

fmt:
	cargo fmt --all
