#!/bin/busybox sh
# The first process of the virtual machine. Its root is the host's, read through virtiofs, with an overlay in memory for
# what is written; /run is its own, and so is /tmp, on a disk. Then it runs $script, and ends the machine.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $modules; do
    modprobe "$module" || echo "no module $module"
done
mount -t virtiofs -o ro host /host || echo "the host's files cannot be read"
mount -t tmpfs memory /memory

# over DIR [BELOW]: the host's DIR, at /new/DIR, to be written to and forgotten
over() {
    mkdir -p "/memory/$2/upper" "/memory/$2/work" "/new$1"
    mount -t overlay -o "lowerdir=/host$1,upperdir=/memory/$2/upper,workdir=/memory/$2/work" overlay "/new$1"
}
over "" root
mount -t tmpfs run /new/run
mount -t ext4 /dev/vda /new/tmp && chmod 1777 /new/tmp
# What the script needs may be below /tmp, which is another one now.
number=0
for dir in $needs; do
    number=$((number + 1))
    case "$dir" in /tmp/*) over "$dir" "$number" ;; esac
done
mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t securityfs security /new/sys/kernel/security
mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
for controller in $(cat /new/sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/new/sys/fs/cgroup/cgroup.subtree_control
done
ip link set lo up
hostname localhost
# Not chroot: who has another root than its mount namespace makes no user namespace and enters no container.
exec switch_root /new /bin/sh -c "$script; busybox poweroff -f"
