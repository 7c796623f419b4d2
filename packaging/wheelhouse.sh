#!/usr/bin/env bash
# Everything that an edge box needs, in one folder: run on a machine with network, carried to one without. See docs/edge.md.
#
#   make wheelhouse [PLATFORM=x86_64|aarch64] [TARGET_PYTHON=3.11] [EXTRA=cpu,serve] [WITH="more requirements"] [GLIBC=31] [OUT=wheelhouse]
set -euo pipefail

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
platform=${PLATFORM:-$(uname -m)}
version=${TARGET_PYTHON:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
extra=${EXTRA:-cpu,serve}
glibc=${GLIBC:-31}
out=${OUT:-wheelhouse}
read -r -a more <<< "${WITH:-}"

case $platform in x86_64 | aarch64) ;; *) echo "PLATFORM must be x86_64 or aarch64, got $platform" >&2; exit 2 ;; esac
if [ -e "$out" ]; then echo "$out is there already; remove it, or name another with OUT=" >&2; exit 1; fi

partial=$(mktemp -d "${TMPDIR:-/tmp}/wheelhouse.XXXXXX")
trap 'rm -rf "$partial"' EXIT

rm -rf build/lib  # what an earlier build has left would get into the wheel
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$partial" .
wheel=$(basename "$partial"/lifelong_reid-*.whl)
release=${wheel#lifelong_reid-}
release=${release%%-*}
printf '%s\n' "lifelong-reid[$extra]==$release" ${more[@]+"${more[@]}"} > "$partial/requirements.txt"

tags=()
for minor in $(seq 17 "$glibc"); do tags+=(--platform "manylinux_2_${minor}_$platform"); done
"$python" -m pip download --quiet --dest "$partial" --only-binary :all: --implementation cp --python-version "$version" \
  "${tags[@]}" --platform "manylinux2014_$platform" --platform "linux_$platform" --find-links "$partial" --requirement "$partial/requirements.txt"

sed -e "s/@PYTHON@/$version/" -e "s/@PLATFORM@/$platform/" packaging/install.sh > "$partial/install.sh"
chmod 755 "$partial" "$partial/install.sh"
(cd "$partial" && sha256sum -- *.whl requirements.txt install.sh > SHA256SUMS)
mkdir -p "$(dirname "$out")"
mv "$partial" "$out"
trap - EXIT
echo "$out: $(find "$out" -name '*.whl' | wc -l) wheels, $(du -sh "$out" | cut -f1), for Python $version on $platform; there: sh $(basename "$out")/install.sh /opt/reid"
