# Once: what start.sh and the programs read. Words in capitals are put in when it is run.
mkdir -p /etc/cni/net.d /var/log /var/lib/kubelet /var/lib/containerd /run/images /node/www
echo "nameserver 192.0.2.53" >/etc/resolv.conf
echo "127.0.0.1 localhost" >/etc/hosts
echo "hosts: files dns" >/etc/nsswitch.conf
echo "root:x:0:0:root:/root:/bin/sh" >/etc/passwd
echo "root:x:0:" >/etc/group
echo "here" >/node/www/index.html
cat >/node/dnsmasq.conf <<END
no-resolv
no-hosts
user=root
pid-file=
local-ttl=30
address=/api.example.com/198.51.100.10
address=/other.example.net/198.51.100.20
END
cat >/etc/cni/net.d/10-bridge.conflist <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{
  "type": "bridge", "bridge": "pods0", "isGateway": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
END
cat >/node/containerd.toml <<END
version = 2
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.native", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "CLIENT_IMAGE"
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
END
cat >/node/kubelet.yaml <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
authentication: { anonymous: { enabled: false }, webhook: { enabled: false } }
authorization: { mode: AlwaysAllow }
cgroupDriver: cgroupfs
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
makeIPTablesUtilChains: false
syncFrequency: 10s
runtimeRequestTimeout: 10m
staticPodPath: /node/pods
END
mkdir -p /node/pods
cat >/node/kubeconfig <<END
apiVersion: v1
kind: Config
current-context: node
contexts: [{ name: node, context: { cluster: e2e, user: node } }]
clusters: [{ name: e2e, cluster: { server: "https://SERVER", certificate-authority: /node/ca.crt } }]
users: [{ name: node, user: { token: TOKEN } }]
END
cat >/node/ca.crt <<END
CERTIFICATE
END
sh /node/start >/node/start.log 2>&1 &
while [ ! -S /run/containerd/containerd.sock ]; do sleep 1; done
tar -x -f /dev/vdb -C /run/images
for archive in /run/images/*.tar; do
    ctr -n k8s.io images import "$archive" || exit
done
