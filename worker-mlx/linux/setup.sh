#!/bin/sh
# Prepares Linux for building worker-mlx: MLX's library, its C interface, and Rust bindings, in a cache folder.
#
#   worker-mlx/linux/setup.sh CACHE_FOLDER
#
# mlx-sys can't build on Linux, but it has a `links` key, so Cargo takes a description of a ready library instead of
# running its build script. This script makes the library from unmodified packages and writes that description to
# .cargo/mlx-linux.toml, which .cargo/config.toml includes where it exists. It may be run again at any time; what is
# there already is kept. Packages needed: cmake, g++, libclang-dev, libfmt-dev, python3 with pip, and libopenblas0-pthread for speed.
set -eu

fail() {
    echo "setup: $*" >&2
    exit 1
}
say() {
    echo "setup: $*"
}

[ $# -eq 1 ] || fail "usage: $0 CACHE_FOLDER"
[ "$(uname -s)" = Linux ] || fail "only Linux needs this; on macOS mlx-sys builds MLX by itself"
mkdir -p "$1"
cache=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
for tool in cmake g++ cargo python3 sed; do
    command -v "$tool" >/dev/null 2>&1 || fail "$tool is missing"
done
case $(uname -m) in
x86_64 | aarch64) ;;
*) fail "no MLX for the processor $(uname -m)" ;;
esac

# The sources of mlx-c are inside the package that Cargo has.
manifest=$(cd "$repository" && cargo metadata --format-version 1 --manifest-path "$repository/Cargo.toml" |
    tr ',' '\n' | sed -n 's/^"manifest_path":"\(.*\/mlx-sys-[^/]*\/Cargo.toml\)"$/\1/p' | head -n 1)
[ -n "$manifest" ] || fail "cargo metadata names no mlx-sys package"
mlx_c=$(dirname "$manifest")/src/mlx-c
version=$(sed -n 's/.*GIT_TAG v\([0-9.]*\)).*/\1/p' "$mlx_c/CMakeLists.txt" | head -n 1)
[ -n "$version" ] || fail "mlx-c names no MLX version"
say "MLX $version, mlx-c in $(basename "$(dirname "$manifest")")"

# One folder per MLX version, so that an update never mixes two.
root=$cache/$version
wheel=$root/wheel
include=$root/include
library=$root/lib
bindings=$root/bindings
mkdir -p "$root" "$include" "$library" "$bindings"

if [ ! -f "$wheel/mlx/lib/libmlx.so" ]; then
    say "downloading mlx-cpu $version"
    rm -rf "$root/download" "$wheel.part"
    python3 -m pip download -q --no-deps --only-binary :all: -d "$root/download" "mlx-cpu==$version" ||
        fail "pip can't download mlx-cpu $version"
    python3 -m zipfile -e "$root"/download/mlx_cpu-*.whl "$wheel.part"
    mv "$wheel.part" "$wheel"
    rm -rf "$root/download"
fi

# The wheel brings the reference BLAS; OpenBLAS has the same symbols and is 3 to 10 times faster.
blas=${OLLMLX_BLAS:-}
if [ -z "$blas" ]; then
    for candidate in /usr/lib/"$(uname -m)"-linux-gnu/openblas-*/libblas.so.3 /usr/lib64/libopenblas.so.0; do
        [ -f "$candidate" ] && blas=$candidate
    done
fi
if [ -n "$blas" ]; then
    for bundled in "$wheel"/mlx_cpu.libs/libblas-*; do
        [ -L "$bundled" ] || { [ -f "$bundled" ] && mv "$bundled" "$root/$(basename "$bundled").reference"; }
        ln -sf "$blas" "$bundled"
    done
    say "BLAS: $blas"
else
    say "BLAS: the reference one of the wheel (install libopenblas0-pthread for a faster one)"
fi

compat=
if ! printf '#include <format>\nint main() {}\n' | g++ -std=c++20 -fsyntax-only -x c++ - 2>/dev/null; then
    cp "$here/format" "$include/format"
    compat="-I$include -include format"
fi

if [ ! -f "$library/libmlxc.a" ]; then
    say "building mlx-c"
    cmake -S "$mlx_c" -B "$root/build" -DCMAKE_BUILD_TYPE=Release -DMLX_C_USE_SYSTEM_MLX=ON \
        -DMLX_DIR="$wheel/mlx/share/cmake/MLX" -DMLX_C_BUILD_EXAMPLES=OFF -DBUILD_SHARED_LIBS=OFF \
        -DCMAKE_CXX_FLAGS="$compat" >"$root/cmake.log" 2>&1 || fail "cmake failed, see $root/cmake.log"
    cmake --build "$root/build" --target mlxc --parallel >>"$root/cmake.log" 2>&1 ||
        fail "mlx-c does not build, see $root/cmake.log"
    cp "$root/build/libmlxc.a" "$library/libmlxc.a"
fi

# Cargo packs the shim into mlx-sys and does not look at it again, so another shim has another name.
shim=mlxshim$(cksum <"$here/shim.cpp" | cut -d ' ' -f 1)
if [ ! -f "$library/lib$shim.a" ]; then
    say "building the shim"
    # shellcheck disable=SC2086 # The flags are words.
    g++ -std=c++20 -O2 -fPIC $compat -I"$mlx_c" -isystem "$wheel/mlx/include" -c "$here/shim.cpp" -o "$root/shim.o"
    rm -f "$library"/libmlxshim*.a
    ar rcs "$library/lib$shim.a" "$root/shim.o"
fi

if [ ! -f "$bindings/bindings.rs" ] || [ "$here/half.h" -nt "$bindings/bindings.rs" ]; then
    say "writing the bindings (builds bindgen once)"
    (cd "$here/bindings" && cargo run -q --release --target-dir "$root/bindgen" -- \
        "$mlx_c" "$here/half.h" "$bindings/bindings.rs.part") || fail "bindgen failed (is libclang-dev installed?)"
    mv "$bindings/bindings.rs.part" "$bindings/bindings.rs"
fi

mkdir -p "$repository/.cargo"
config=$repository/.cargo/mlx-linux.toml
{
    echo "# Written by worker-mlx/linux/setup.sh; not for version control."
    for target in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu; do
        cat <<EOF
[target.$target.mlx]
rustc-link-search = ["native=$library", "native=$wheel/mlx/lib"]
rustc-link-lib = ["static=mlxc", "static=$shim", "dylib=mlx", "dylib=stdc++"]
rustc-env = { OUT_DIR = "$bindings" }
rpath = "$wheel/mlx/lib"
EOF
    done
} >"$config.part"
# An unchanged file keeps its time, so that nothing is built anew.
if cmp -s "$config.part" "$config"; then rm "$config.part"; else mv "$config.part" "$config"; fi
say "done: .cargo/mlx-linux.toml"
