//! The techniques: the one list from which the tests and the table of docs/security.md are made.

use crate::{answers, crafted, forged, moved, networks, raw, sockets, turned};

/// Outcome of a technique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing leaves.
    Stopped,
    /// Nothing leaves if the agent judges the interface, too.
    AtInterface,
    /// Nothing leaves if the agent judges the interfaces of pods.
    AtPodInterface,
    /// It is known how to stop it, and not done yet.
    Gap,
    /// It gets through, and the reason says why.
    NotStopped,
}

/// One bypass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Technique {
    /// The technique in words.
    pub(crate) name: &'static str,
    /// Its outcome.
    pub(crate) outcome: Outcome,
    /// The hook or rule that stops it, and its needs; or why nothing stops it.
    pub(crate) why: &'static str,
}

/// Makes the table and a test for each of its rows.
macro_rules! techniques {
    ($($(#[$attribute:meta])* $outcome:ident $module:ident::$test:ident: $name:literal, $why:literal;)*) => {
        /// Techniques that tests try.
        pub(crate) const TECHNIQUES: &[Technique] = &[$(Technique {
            name: $name,
            outcome: Outcome::$outcome,
            why: $why,
        }),*];

        $(#[test] $(#[$attribute])* fn $test() { $module::$test(); })*
    };
}

/// Rows that share a test: many in one world.
pub(crate) fn several() -> impl Iterator<Item = Technique> {
    turned::techniques()
        .chain(crafted::techniques())
        .chain(answers::techniques())
}

/// Techniques that no test here tries.
pub(crate) const UNTRIED: &[Technique] = &[
    Technique {
        name: "root in the host's namespaces",
        outcome: Outcome::NotStopped,
        why: "can detach the programs or rewrite their maps. Nothing on a node can stop its root.",
    },
    Technique {
        name: "domain fronting, shared addresses",
        outcome: Outcome::NotStopped,
        why: "for rules without `require: tls`: names become addresses, and behind one address of a CDN live many sites. With it the hello has to name an allowed one (`tests/tests/netns/hello.rs`), and what remains is a server that goes by something else: the `Host` header inside TLS, or a second hello after a HelloRetryRequest.",
    },
    Technique {
        name: "DNS over HTTPS inside an allowed name",
        outcome: Outcome::NotStopped,
        why: "teaches no address, so it opens nothing. But what is said over it is not seen.",
    },
    Technique {
        name: "asking a process that may: a proxy, a daemon's socket, an allowed site that relays",
        outcome: Outcome::NotStopped,
        why: "It is that process that sends, by its own rules.",
    },
    Technique {
        name: "networks that are not IP (vsock, InfiniBand, Bluetooth)",
        outcome: Outcome::NotStopped,
        why: "are not looked at; seccomp is the tool against them.",
    },
    Technique {
        name: "a raw packet to an allowed address, handed to a neighbour on the link (`IP_HDRINCL`, and `sendto` the neighbour)",
        outcome: Outcome::NotStopped,
        why: "The header counts, and a rule allows it. The kernel keeps the neighbour in the packet's route, as it does a gateway: nothing there tells the one from the other. It needs `CAP_NET_RAW`.",
    },
    Technique {
        name: "IGMP and multicast listener reports with data in them",
        outcome: Outcome::NotStopped,
        why: "pass as link control, like ARP: they go to a group, with hop limit 1, and no router forwards them. Only a neighbour on the same link can read them. They need `CAP_NET_RAW`.",
    },
    Technique {
        name: "an address of the node from another network namespace, over a second device of a pod",
        outcome: Outcome::NotStopped,
        why: "For a pod the node's addresses are in the lifeline, whichever of its devices leads there. Leave them out with `--no-lifeline node-addresses` where pods have devices of other networks.",
    },
    Technique {
        name: "an allowed UDP flow made a reply: sent by a socket with a peer, and the answer taken by one without (`AF_UNSPEC`, `SO_REUSEPORT`)",
        outcome: Outcome::Gap,
        why: "The kernel notes no remote of a socket with a peer, so that the answer counts as a call, whose replies pass when the rule is gone. It ends when the remote is silent for three minutes. Nothing opens that was not allowed before, and no other port.",
    },
    Technique {
        name: "UDP without a peer from before the programs, to a remote that goes on sending",
        outcome: Outcome::Gap,
        why: "The first datagram that arrives after the start counts as a call of the remote.",
    },
    Technique {
        name: "before the agent's first start",
        outcome: Outcome::NotStopped,
        why: "After a reboot nothing is enforced until the agent has started. The systemd unit starts it before the network; a DaemonSet's pod comes later.",
    },
];

techniques! {
    Stopped sockets::tcp_fast_open: "TCP fast open (data in the SYN, no `connect()`)", "`connect4`, `connect6`; the SYN at `skb_egress`";
    Stopped sockets::zero_copy: "`MSG_ZEROCOPY`", "`skb_egress`";
    Stopped sockets::io_uring: "`io_uring`: connect and send, also by the kernel's own thread", "`connect4`, `connect6`, `skb_egress`";
    Stopped sockets::sendfile: "`sendfile`, `splice`", "`skb_egress`";
    Stopped sockets::many_destinations_in_one_call: "`sendmmsg` to several destinations", "`skb_egress` judges each packet";
    Stopped sockets::sendto_elsewhere: "a UDP socket connected to an allowed address, and `sendto` another", "`skb_egress` judges each packet";
    Stopped sockets::another_peer_for_an_allowed_socket: "an allowed socket that connects again elsewhere, also by way of `AF_UNSPEC`", "what a socket remembers is bound to the destination";
    Stopped sockets::packet_info: "`IP_PKTINFO`, `IPV6_PKTINFO`", "`skb_egress`";
    Stopped sockets::socket_mark: "`SO_MARK`", "`skb_egress`: marks mean nothing to it";
    Stopped sockets::bind_to_device: "`SO_BINDTODEVICE`", "`skb_egress`";
    Stopped sockets::loopback_addresses_over_a_device: "127.0.0.0/8 and ::1 over another device than loopback (`SO_BINDTODEVICE`, `IP_PKTINFO`, `IPV6_PKTINFO`, `IP_UNICAST_IF`)", "`skb_egress`: the device counts, not the address. A neighbour could take it in";
    Stopped sockets::the_nodes_own_address_over_a_device: "an address of the node, over a device that does not have it", "`skb_egress`: in the node's network namespace what is local is on loopback; on another device it is judged like any address";
    Stopped sockets::mapped_addresses: "IPv4 through an IPv6 socket (`::ffff:a.b.c.d`)", "judged as the IPv4 address that it is";
    Stopped sockets::embedded_ipv4_addresses: "IPv6 addresses with an allowed IPv4 address inside (NAT64, 6to4, compatible, translated)", "judged as the IPv6 addresses that they are";
    Stopped sockets::link_local_addresses: "link-local neighbours", "judged like any address";
    Stopped sockets::multicast_and_broadcast: "multicast and broadcast", "judged like any address; open is DHCP's broadcast on its port, by the lifeline";
    Stopped sockets::simultaneous_open: "TCP simultaneous open with an accomplice", "`connect4`; the answer to a SYN that crosses ours is judged like ours";
    Stopped sockets::tcp_repair: "a socket that was never opened (`TCP_REPAIR`)", "`connect4`, `connect6`: they see this connect, too";
    Stopped sockets::udp_lite: "UDP-Lite", "`skb_egress`. Tried where the kernel has UDP-Lite";
    Stopped sockets::mptcp: "MPTCP", "`connect4`, `connect6`";
    Stopped sockets::mptcp_subflows: "MPTCP subflows that the far end asks for", "`skb_egress` judges each subflow; from 5.12 it belongs to the cgroup of its connection";
    Stopped sockets::sctp_sockets: "SCTP sockets", "`skb_egress`. Tried where the kernel has SCTP";
    Stopped sockets::dccp_sockets: "DCCP sockets", "`skb_egress`. Tried where the kernel has DCCP";
    Stopped sockets::source_routing: "source routing by socket option (IPv4 loose and strict, IPv6 segments)", "`skb_egress` denies it, wherever it leads";
    Stopped sockets::extension_headers: "hop-by-hop and destination options, to hide the ports", "`skb_egress` walks up to eight headers";
    Stopped sockets::tcp_port_of_dot: "DNS over TLS (853)", "the lifeline opens port 53 of trusted resolvers, and no other";

    Stopped raw::raw_sockets: "raw sockets, IPv4 and IPv6", "`skb_egress`";
    Stopped raw::raw_sockets_with_headers: "raw sockets that write the header, a TCP of one's own", "`skb_egress`";
    Stopped raw::another_destination_in_the_header: "a header with another destination than `sendto` says", "the header counts";
    Stopped raw::forged_sources: "raw packets with a forged source", "judged by their destination";
    Stopped raw::loopback_destination_on_the_wire: "raw packets to 127.0.0.1 or ::1 that are routed to a neighbour", "`skb_egress`: only what stays on the loopback device is loopback";
    Stopped raw::kernel_answers: "raw sockets that send what the kernel answers by itself (ICMP errors and replies, resets)", "`skb_egress` tells the kernel's own sockets from a process's";
    Stopped raw::link_control: "raw neighbour discovery to a far address", "`skb_egress` passes the kernel's own";
    Stopped raw::icmp_tunnels: "ICMP and ICMPv6 tunnels, by ping sockets and raw ones", "`skb_egress`";
    Stopped raw::ipip: "IPv4 or IPv6 in IPv4 or IPv6 (protocol 4)", "judged by the outer header";
    Stopped raw::ipv6_in_ip: "6in4 (protocol 41)", "judged by the outer header";
    Stopped raw::gre: "GRE", "judged by the outer header";
    Stopped raw::other_protocols: "other protocols in raw packets (SCTP, DCCP, ESP, L2TP, PIM and more)", "`skb_egress`";
    Stopped raw::later_fragments: "later fragments without their first", "only rules for any port let them pass";
    Stopped raw::tiny_fragments: "tiny and overlapping fragments", "without ports a fragment is denied, and later ones pass only where every port is open";
    Stopped raw::raw_source_routing: "source routing in raw packets, hidden behind other options", "`skb_egress` denies it, wherever it leads";
    Stopped raw::many_extension_headers: "long chains of IPv6 extension headers", "more than eight are denied";

    Stopped forged::answers_by_raw_sockets: "answering oneself in the name of the resolver: raw sockets", "`skb_egress`; and an answer over loopback is believed from no far address";
    Stopped forged::answers_by_packet_sockets: "answering oneself in the name of the resolver: packet sockets on `lo`", "`skb_ingress` does not believe it";
    Stopped forged::answers_by_transparent_sockets: "answering oneself in the name of the resolver: `IP_TRANSPARENT` sockets", "`skb_ingress` does not believe it";
    Stopped forged::answers_by_freebind_sockets: "answering oneself in the name of the resolver: `IP_FREEBIND`, `IPV6_FREEBIND` sockets", "`skb_ingress` does not believe it";
    Stopped forged::answers_in_a_tcp_connection: "answering oneself in the name of the resolver: inside a real TCP connection to the resolver", "`skb_ingress` does not believe it";
    Stopped forged::answers_from_an_untrusted_server: "DNS over TCP to a server that is no trusted resolver", "its answers teach nothing; without a rule it cannot be asked";
    Stopped forged::calls_by_raw_sockets: "calling oneself in the name of a far end, to answer it: raw sockets (TCP, UDP, ping)", "`skb_egress`";
    Stopped forged::calls_by_packet_sockets: "calling oneself in the name of a far end: TCP and UDP, by packet sockets on `lo`", "`skb_ingress`";
    #[ignore = "known gap (docs/security.md): the kernel answers what a packet socket puts on lo"]
    Gap forged::questions_to_the_kernel_by_packet_sockets: "making the kernel answer to a far end (pings, closed ports): packet sockets on `lo`", "The kernel's answer, with what was asked, leaves. They need `CAP_NET_RAW`";
    Stopped forged::questions_to_the_kernel_by_transparent_sockets: "making the kernel answer to a far end: `IP_TRANSPARENT` sockets", "`skb_egress`: on loopback nothing is asked in the name of somebody who is not here";
    Stopped forged::questions_to_the_kernel_by_freebind_sockets: "making the kernel answer to a far end: `IPV6_FREEBIND` sockets", "as above";
    Stopped forged::calls_by_transparent_sockets: "calling oneself in the name of a far end: `IP_TRANSPARENT` sockets", "`skb_ingress`";
    Stopped forged::calls_by_freebind_sockets: "calling oneself in the name of a far end: `IP_FREEBIND`, `IPV6_FREEBIND` sockets", "`skb_ingress`";
    Stopped forged::a_resolvers_address_in_a_namespace_of_ones_own: "a resolver of one's own, in a network namespace of one's own", "What is learned in a network namespace counts there alone. In its **own** namespace a workload with `CAP_NET_ADMIN` can take the resolver's address (one of 127.0.0.0/8 takes no right at all): so never trust a loopback resolver where containers share the node's scope.";
    Stopped forged::a_server_of_ones_own_by_translation: "a server of one's own behind a resolver's address that is translated in a network namespace of one's own (nftables), asked by a socket without a peer", "A query counts for where it goes. A connected socket's counts for its peer, and teaches in that namespace alone; both need `CAP_NET_ADMIN` there.";
    Stopped forged::answers_by_looped_multicast: "answering oneself in the name of the resolver: by a group or broadcast that the lifeline or a rule opens", "`skb_ingress`: what this network namespace sent itself teaches only from a resolver of this machine";
    Stopped forged::calls_by_looped_multicast: "calling oneself in the name of a far end: by a group or broadcast that the lifeline or a rule opens", "`skb_ingress`: it is nobody\'s call";
    NotStopped forged::calls_from_outside: "answering an accomplice who calls from outside", "Replies always pass. Who may call is for the node's inbound firewall.";
    NotStopped forged::calls_by_a_neighbour: "a call in the name of a far end from another container, to answer it (`IPV6_FREEBIND` takes no right)", "It looks like the far end's. Checks of sources at the containers' links stop it (the CNI's, `rp_filter`, an `rpfilter` rule for IPv6).";
    NotStopped forged::answers_from_a_neighbour: "a forged answer from a neighbour of the node that was told the query (packet sockets in another container)", "It looks like the resolver's. Reverse-path filters (`rp_filter`, the CNI's) stop it. It needs `CAP_NET_RAW`.";
    Stopped forged::answers_over_a_device_of_ones_own: "a forged answer over a device of one's own (veth, tun) in a network namespace of one's own", "It looks like the resolver's, and teaches in that namespace alone.";
    Stopped forged::calls_in_another_namespace: "calling oneself in the name of a remote: in a network namespace of one's own (with a user namespace it takes no right), to answer from the real one", "`skb_egress`: a call counts in the network namespace where it arrived, and in no other";
    AtInterface forged::calls_over_a_device_of_ones_own: "calling oneself in the name of a far end: over a device of one's own (veth, tun) in a network namespace of one's own", "`tc_egress` on the node's interface has seen no call. It needs `CAP_NET_ADMIN`";
    NotStopped forged::dns_tunnels: "DNS tunnelling", "open: any name may be asked of the trusted resolvers, and a question can carry data. `status` says so.";

    Stopped moved::sockets_passed_to_another_scope: "a socket passed to a process that may more (`SCM_RIGHTS`)", "`skb_egress`: who made the socket counts";
    NotStopped moved::ports_taken_over_from_another_scope: "taking over the UDP port from which another scope of the same network namespace asked somebody", "Whoever sends there has called, and replies always pass: to that address and port alone. It takes the other scope's port, and that its peer still answers.";
    Stopped moved::processes_moved_to_another_cgroup: "using a socket after moving to the cgroup of a process that may more", "`skb_egress`: a socket stays where it was made";
    Stopped moved::new_cgroups_below: "new cgroups below one's own", "belong to the scope above them";
    Stopped moved::connections_opened_before: "connections opened before the programs were attached", "UDP is judged at its next packet (see above for sockets without a peer). TCP is kept, unless the policy says `preexisting: judge`";
    Stopped moved::raw_sockets_opened_before: "raw sockets opened before the programs were attached", "`skb_egress` reads from the socket whether the kernel made it for itself, and judges all others";
    NotStopped moved::writing_another_scopes_cgroup_procs: "moving to the cgroup of a process that may more, and making a socket there", "Whoever may write its `cgroup.procs` belongs to it. Containers cannot, with a cgroup namespace or a read-only mount.";
    NotStopped moved::sockets_from_outside_of_what_is_judged: "a socket from a process outside of the cgroup that the agent is attached to", "Attached to the root cgroup, as by default, there is no outside.";

    Stopped networks::network_namespaces: "a network namespace of one's own", "the cgroup's hooks are the same in every namespace";
    AtInterface networks::packet_sockets: "packet sockets (`AF_PACKET`)", "`tc_egress`; they pass no cgroup hook. They need `CAP_NET_RAW`";
    AtInterface networks::packets_on_loopback_that_the_node_forwards: "packet sockets on `lo` of a node that forwards", "`tc_egress`; forwarded packets pass no cgroup hook. They need `CAP_NET_RAW` in the node's network namespace";
    AtInterface networks::vxlan_devices: "tunnel devices in a network namespace of one's own: VXLAN", "`tc_egress` on the node's interface judges the outer packet. They need `CAP_NET_ADMIN`";
    AtInterface networks::ipip_devices: "tunnel devices in a network namespace of one's own: IPIP", "as above. Tried where the kernel has them";
    AtInterface networks::gre_devices: "tunnel devices in a network namespace of one's own: GRE", "as above. Tried where the kernel has them";
    AtInterface networks::sit_devices: "tunnel devices in a network namespace of one's own: SIT (6in4)", "as above. Tried where the kernel has them";
    AtInterface networks::rewriting_after_the_hooks: "rewriting packets in a network namespace of one's own (nftables, tc)", "`tc_egress` on the node's interface judges what comes out of it. It needs `CAP_NET_ADMIN`";
    AtPodInterface networks::packet_sockets_of_a_pod: "packet sockets of a pod, also with `PACKET_QDISC_BYPASS`", "`tc_egress` at the host's end of the pod's interface, under the pod's policy. They need `CAP_NET_RAW`";
    AtPodInterface networks::af_xdp_of_a_pod: "`AF_XDP` of a pod", "as above";
    NotStopped networks::rewriting_in_a_pod: "rewriting packets in a pod (nftables, tc), without `--interface` where they leave the node", "The packet still has its socket, which was judged before it was rewritten. It needs `CAP_NET_ADMIN`.";
    NotStopped networks::rewriting_behind_a_macvlan: "rewriting packets, or tunnel devices, in a network namespace that shares the node's device (macvlan)", "The node's `tc_egress` sees a packet with a socket, which was judged before it was rewritten. It needs `CAP_NET_ADMIN`.";
    NotStopped networks::tunnel_devices_of_the_node: "tunnel devices in the host's network namespace", "The outer packet is the kernel's. They need `CAP_NET_ADMIN` there.";
    NotStopped networks::packet_sockets_past_the_queue: "packet sockets with `PACKET_QDISC_BYPASS`", "go past `tc_egress`. They need `CAP_NET_RAW`.";
    NotStopped networks::af_xdp: "`AF_XDP`", "goes past `tc_egress`. It needs `CAP_NET_RAW`.";
    NotStopped networks::arp_frames: "ARP frames with a payload", "`--interface` lets ARP pass. Only a neighbour on the same link can read them. They need `CAP_NET_RAW`.";
}
