#!/usr/bin/env bash
# A real virtual camera on a machine without one: Debian's kernel under qemu with v4l2loopback loaded, this machine's
# files shared into it read-only, and tests/camera/guest.py run there by the Python that is given.
#
#   tests/camera/run.sh .venv/bin/python
#
# For Debian 12 on x86-64. As root it installs what is missing by apt-get; the kernel is unpacked, never installed.
# Emulated, without hardware acceleration: slow, and a proof of what is right, not of speed.
set -euo pipefail

python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
seconds=${CAMERA_SECONDS:-600}

die() { echo "test-camera: $*" >&2; exit 1; }

[ "$(uname -m)" = x86_64 ] || die "the emulated machine is x86-64, and so must this one be: it lends its programs"
command -v apt-get >/dev/null || die "needs Debian's packages (apt-get)"

fetched=
install() { # what is missing of the packages named
    local missing
    missing=$(for package; do dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q ' installed$' || echo "$package"; done)
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || die "not root; first: sudo apt-get install" $missing
    echo "test-camera: installing" $missing
    [ -n "$fetched" ] || apt-get update -qq
    fetched=1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

install qemu-system-x86 busybox-static cpio kmod v4l-utils make
[ -n "$(apt-cache madison linux-image-amd64)" ] || { [ "$(id -u)" = 0 ] && apt-get update -qq; fetched=1; }
image=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
kernel=${image#linux-image-}
[ -n "$kernel" ] || die "apt knows no linux-image-amd64"
# what the module is compiled with
install "linux-headers-$kernel"

cache=$root/.cache/camera/$kernel
initramfs=$cache/initramfs.gz
if [ ! -f "$initramfs" ] || [ "$here/init" -nt "$initramfs" ] || [ "$here/run.sh" -nt "$initramfs" ]; then
    echo "test-camera: building a machine of Linux $kernel with v4l2loopback (once)"
    mkdir -p "$cache/debs"
    # apt fetches as another user, who may not write here
    (cd "$cache/debs" && ls "$image"_* v4l2loopback-dkms_* >/dev/null 2>&1 ||
        apt-get -qq -o APT::Sandbox::User=root download "$image" v4l2loopback-dkms)
    rm -rf "$cache/unpacked" "$cache/tree"
    for package in "$cache"/debs/*.deb; do dpkg-deb -x "$package" "$cache/unpacked"; done
    modules=lib/modules/$kernel
    source=$(echo "$cache"/unpacked/usr/src/v4l2loopback-*)
    make -s -C "/$modules/build" M="$source" modules >"$cache/build.log" 2>&1 || { cat "$cache/build.log"; die "v4l2loopback does not build"; }
    mkdir -p "$cache/unpacked/$modules/extra" "$cache/tree/bin"
    cp "$source/v4l2loopback.ko" "$cache/unpacked/$modules/extra/"
    depmod -b "$cache/unpacked" "$kernel"
    # only the modules that are needed, with those they need
    for module in virtio_pci 9pnet_virtio 9p v4l2loopback; do
        modprobe -d "$cache/unpacked" -S "$kernel" --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
        target=$cache/tree/$modules${file#*"$modules"}
        mkdir -p "$(dirname "$target")"
        cp "$file" "$target"
    done
    cp "$cache/unpacked/$modules"/modules.{order,builtin,builtin.modinfo} "$cache/tree/$modules/"
    depmod -b "$cache/tree" "$kernel"
    cp /bin/busybox "$cache/tree/bin/"
    cp "$here/init" "$cache/tree/init"
    chmod +x "$cache/tree/init"
    cp "$cache/unpacked/boot/vmlinuz-$kernel" "$cache/vmlinuz"
    (cd "$cache/tree" && find . | cpio -o -H newc --quiet | gzip) >"$initramfs.part"
    mv "$initramfs.part" "$initramfs"
    rm -rf "$cache/unpacked" "$cache/tree"
fi

log=$root/.cache/camera/console.log
echo "test-camera: starting it (at most $seconds s)"
# -cpu max: NumPy's wheels want instructions that the plainest emulated processor has not
timeout "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -nographic -no-reboot -nodefaults \
    -serial stdio -kernel "$cache/vmlinuz" -initrd "$initramfs" \
    -append "console=ttyS0 quiet panic=-1 ifmdm.python=$python ifmdm.root=$root" \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
    </dev/null 2>&1 | tr -d '\r' | tee "$log" | grep --line-buffered -o 'camera: .*' || true
grep -q '^camera: all is well$' "$log" && exit 0
echo "test-camera: failed; the end of the emulated machine's console ($log):" >&2
tail -25 "$log" >&2
exit 1
