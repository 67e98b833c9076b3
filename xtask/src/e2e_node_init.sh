# The first process of the node: file systems, what was running before, then commands from outside.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mkdir -p /dev/pts /dev/shm /root
busybox mount -t devpts devpts /dev/pts
busybox mount -t tmpfs shm /dev/shm
busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
busybox mount -t bpf bpf /sys/fs/bpf
busybox mount -t tmpfs -o mode=755 run /run
busybox mount -t tmpfs tmp /tmp
busybox mount --make-rshared /
# What packages brought stays.
busybox --install -s /bin 2>/dev/null
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
hostname node
ip link set lo up
[ -f /node/start ] && sh /node/start >/node/start.log 2>&1 </dev/null &

# A command comes after a line with its number, its length, and the seconds that it may take. What it printed goes
# back in the same way.
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = control ] && control=/dev/${port##*/}
done
exec <>"$control"
while true; do
    while read -r number length seconds; do
        head -c "$length" >/run/command
        timeout "$seconds" sh /run/command >/run/output 2>&1 </dev/null
        echo "$number $? $(stat -c %s /run/output)" >&0
        cat /run/output >&0
    done
    # Nobody is there.
    sleep 1
done
