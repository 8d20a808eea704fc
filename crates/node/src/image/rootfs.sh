# Runs inside mmdebstrap as its last customize hook; $1 is the new root. What is to be kept of the build goes to $1/mnt:
# rootfs.img, vmlinuz and the initramfs modules. KERNEL_MODULES holds the names of the latter.
set -eu
root=$1
out=$root/mnt

# The kernel's package alone: its dependencies would bring an initramfs generator into every guest.
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
echo "holdfast: kernel ${kernel#linux-image-}"
(cd "$out" && apt-get -qq -o APT::Sandbox::User=root download "$kernel" && mv linux-image-*.deb kernel.deb)
dpkg-deb -x "$out/kernel.deb" "$out/kernel"
version=${kernel#linux-image-}
modules=usr/lib/modules/$version
mkdir -p "$root/usr/lib/modules"
cp -a "$out/kernel/$modules" "$root/usr/lib/modules/"
cp "$out/kernel/boot/vmlinuz-$version" "$out/vmlinuz"
rm -rf "$out/kernel" "$out/kernel.deb"

# Drivers of hardware that a VM of ours never has.
for unused in drivers/gpu drivers/scsi drivers/infiniband drivers/hv drivers/net/ethernet drivers/net/hyperv drivers/target \
    drivers/xen drivers/nvme drivers/ata drivers/usb drivers/hid drivers/message drivers/mtd drivers/net/fjes drivers/net/vmxnet3 \
    drivers/thunderbolt drivers/media drivers/iio drivers/i2c drivers/hwmon drivers/platform drivers/edac drivers/nvdimm drivers/dax \
    net/sctp net/rds net/tipc net/dccp net/atm net/ceph net/sunrpc net/openvswitch net/9p net/batman-adv net/can net/bluetooth \
    fs/xfs fs/btrfs fs/ocfs2 fs/gfs2 fs/jfs fs/ceph fs/smb fs/cifs fs/nfs fs/nfsd fs/lockd fs/dlm fs/f2fs fs/afs fs/orangefs sound virt/kvm arch/x86/kvm; do
    rm -rf "${root:?}/$modules/kernel/$unused"
done
# Decompressing in the guest would cost seconds of emulated CPU.
chroot "$root" sh -c "find /$modules -name '*.ko.xz' -exec busybox unxz {} +"
chroot "$root" depmod "$version"
mkdir "$out/modules"
for name in $KERNEL_MODULES; do
    cp "$(find "$root/$modules" -name "$name.ko")" "$out/modules/"
done

# The sample app's container image, so that a first deploy needs no registry.
echo "holdfast: sample container image"
images=$root/usr/share/holdfast/images
layer=$out/layer
mkdir -p "$images" "$layer/bin" "$layer/tmp" "$layer/etc"
cp "$root/usr/bin/busybox" "$layer/bin/busybox"
for applet in sh httpd sed mkdir cat ls echo printf ps sleep env kill id; do ln -s busybox "$layer/bin/$applet"; done
printf 'root:x:0:0:root:/:/bin/sh\n' > "$layer/etc/passwd"
mv "$root/usr/share/holdfast/start.sh" "$layer/start.sh"
chmod 755 "$layer/start.sh"
chmod 1777 "$layer/tmp"
archive() { tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -C "$1" -cf "$2" $3; }
mkdir "$out/archive"
archive "$layer" "$out/archive/layer.tar" .
digest=$(sha256sum < "$out/archive/layer.tar" | cut -d ' ' -f 1)
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
printf '{"architecture":"amd64","os":"linux","created":"%s","config":{"Env":["PATH=/bin"],"Cmd":["/start.sh"],"ExposedPorts":{"80/tcp":{}}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"%s","created_by":"holdfast image build"}]}' \
    "$created" "$digest" "$created" > "$out/archive/config.json"
printf '[{"Config":"config.json","RepoTags":["holdfast/hello:latest"],"Layers":["layer.tar"]}]' > "$out/archive/manifest.json"
archive "$out/archive" "$images/hello.tar" "manifest.json config.json layer.tar"
rm -rf "$layer" "$out/archive"
(cd "$images" && sha256sum -- *.tar > sums)

rm -rf "$root"/var/cache/* "$root"/var/lib/apt/* "$root"/var/log/* "$root"/usr/share/doc/* "$root"/usr/share/man/* \
    "$root"/usr/share/locale/* "$root"/usr/share/lintian "$root"/usr/share/bash-completion "$root"/usr/share/zsh \
    "$root"/usr/lib/locale/* "$root"/usr/bin/ctr "$root"/usr/bin/containerd-shim "$root"/usr/bin/containerd-shim-runc-v1
mkdir -p "$root/data"
: > "$root/etc/machine-id"
find "$root" -xdev -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} + 2>/dev/null || true

# What is mounted beneath the root must not be in the image: a bind mount in a namespace of its own shows the root alone.
echo "holdfast: root disk"
size=$(du -sxm "$root" | cut -f 1)
export root out size
unshare --mount sh -eu -c '
    mount --bind "$root" "$root/media"
    mount -t tmpfs none "$root/media/mnt"
    truncate -s "$((size + size / 8 + 24))M" "$out/rootfs.img"
    PATH=$PATH:/usr/sbin:/sbin E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -t ext4 -O ^has_journal -m 0 -b 4096 -L holdfast-root \
        -U 8c6a1f0e-5f3b-4c0e-9d2a-686f6c646661 -E hash_seed=8c6a1f0e-5f3b-4c0e-9d2a-686f6c646661,root_owner=0:0 \
        -d "$root/media" "$out/rootfs.img"'
