# The image of Portcullis: the binary, glibc and the CA bundle; no shell, no root, nothing written
# outside /var/lib/portcullis.
#
#   docker build -t portcullis .
#
# Both bases can be replaced, for a build without the public registries or with digests pinned:
#
#   docker build --build-arg RUST_IMAGE=registry.corp.example/rust:1.95-bookworm \
#                --build-arg BASE_IMAGE=registry.corp.example/distroless/cc-debian12:nonroot .
#
# A binary that was built elsewhere takes the place of the first stage (it needs glibc 2.36 or
# older): put it into a directory as `portcullis`, beside an empty directory `state`, and add
# `--build-context build=THE_DIRECTORY`. deploy/image/check.sh does this and more.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
# Without line tables the binary is a quarter as large; backtraces still have the functions' names.
# What the second stage takes lies at the root, so that a directory can stand for this stage.
RUN CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked --bin portcullis \
 && cp target/release/portcullis /portcullis \
 && mkdir /state

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Portcullis" \
      org.opencontainers.image.description="One gate for container images: a pull-through caching proxy for the OCI Distribution API" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /portcullis /usr/bin/portcullis
COPY deploy/image/portcullis.toml /etc/portcullis/portcullis.toml
# A volume that is made for this path inherits its owner.
COPY --from=build --chown=65532:65532 /state /var/lib/portcullis
WORKDIR /var/lib/portcullis
VOLUME /var/lib/portcullis
# By number, because Kubernetes checks `runAsNonRoot` against numbers only.
USER 65532:65532
EXPOSE 5000
STOPSIGNAL SIGTERM
ENTRYPOINT ["portcullis"]
CMD ["serve"]
