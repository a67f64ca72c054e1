#!/bin/sh
# Makes the two base images of the Dockerfile from the Debian that this runs on, for machines that
# reach no registry:
#
#   localhost/portcullis-base    glibc, libgcc, the CA bundle, user 65532: what
#                                distroless/cc-debian12:nonroot has, as far as the binary needs it
#   localhost/portcullis-rust    nothing but links; /usr and the Rust toolchain are mounted when it
#                                is used (see check.sh), which saves a copy of two gigabytes
#
# usage: base.sh BINARY
# BINARY tells which libraries are needed. $BUILDAH holds the options of buildah (the storage).
set -eu

binary=$1
bundle=/etc/ssl/certs/ca-certificates.crt
[ -s "$bundle" ] || { echo "base.sh: no $bundle: apt-get install ca-certificates" >&2; exit 1; }

libraries=$(ldd "$binary" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p')
[ -n "$libraries" ] || { echo "base.sh: $binary is not a dynamic program" >&2; exit 1; }

base=$(buildah $BUILDAH from scratch)
root=$(buildah $BUILDAH mount "$base")
mkdir -p "$root/etc/ssl/certs" "$root/usr/bin" "$root/usr/lib" "$root/usr/lib64"
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"
for library in $libraries; do
    install -D -m 0755 "$library" "$root$library"
done
install -m 0644 "$bundle" "$root$bundle"
echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' > "$root/etc/passwd"
echo 'nonroot:x:65532:' > "$root/etc/group"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
install -d -m 1777 "$root/tmp"
buildah $BUILDAH config --env PATH=/usr/bin --user 65532 "$base"
buildah $BUILDAH commit -q "$base" localhost/portcullis-base > /dev/null
buildah $BUILDAH rm "$base" > /dev/null

rust=$(buildah $BUILDAH from scratch)
root=$(buildah $BUILDAH mount "$rust")
mkdir -p "$root/usr" "$root/etc/alternatives"
ln -s usr/bin usr/sbin usr/lib usr/lib64 "$root/"
install -d -m 1777 "$root/tmp"
buildah $BUILDAH config --env PATH=/toolchain/bin:/usr/bin --env CARGO_HOME=/cargo "$rust"
buildah $BUILDAH commit -q "$rust" localhost/portcullis-rust > /dev/null
buildah $BUILDAH rm "$rust" > /dev/null
