# What the node does at each boot. SERVER_PORT is put in when it is written.
# The shell prefers its own, which knows no namespaces.
ip() { /bin/ip "$@"; }
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
sysctl -q -w net.ipv4.ip_forward=1

# Outside: a network of its own, with the names' servers.
ip netns add outside
ip link add out0 type veth peer name eth0 netns outside
ip link set out0 up
ip address add 192.0.2.1/24 dev out0
ip route add 198.51.100.0/24 via 192.0.2.2
ip -n outside link set lo up
ip -n outside link set eth0 up
ip -n outside address add 192.0.2.2/24 dev eth0
ip -n outside address add 192.0.2.53/24 dev eth0
ip -n outside route add default via 192.0.2.1
for host in 10 20 30; do
    ip -n outside address add "198.51.100.$host/32" dev lo
done
ip netns exec outside /usr/sbin/dnsmasq --conf-file=/node/dnsmasq.conf
ip netns exec outside busybox httpd -p 80 -h /node/www

# Services, as kube-proxy would make them.
ip route add 10.96.0.0/16 via 10.0.2.2
nft -f - <<END
table ip services {
    chain services {
        ip daddr 10.96.0.1 tcp dport 443 dnat to 10.0.2.2:SERVER_PORT
        ip daddr 10.96.0.10 udp dport 53 dnat to 192.0.2.53
        ip daddr 10.96.0.10 tcp dport 53 dnat to 192.0.2.53
    }
    chain prerouting { type nat hook prerouting priority dstnat; jump services; }
    chain output { type nat hook output priority -100; jump services; }
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "eth0" ip saddr 10.244.0.0/16 masquerade
    }
}
END

containerd --config /node/containerd.toml >/node/containerd.log 2>&1 &
while [ ! -S /run/containerd/containerd.sock ]; do sleep 1; done
while true; do
    kubelet --config /node/kubelet.yaml --kubeconfig /node/kubeconfig --hostname-override node --node-ip 10.0.2.15 \
        --container-runtime remote --container-runtime-endpoint unix:///run/containerd/containerd.sock >>/node/kubelet.log 2>&1
    sleep 2
done &
