//! A socket-level load balancer of services, as a replacement of kube-proxy has one: programs at one cgroup.

#![expect(unsafe_code, reason = "system calls")]

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, RawFd},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::libc;

/// `BPF_CGROUP_INET4_CONNECT` and so on, with the direction: to the backend, or back.
const V4: [(u32, bool); 3] = [(10, true), (14, true), (19, false)];
const V6: [(u32, bool); 3] = [(11, true), (15, true), (20, false)];

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;

/// Places in `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;

/// Options of `probe balance`.
#[derive(Args, Debug)]
pub(crate) struct Balance {
    /// Cgroup to attach to, behind what is there.
    cgroup: PathBuf,
    /// `SERVICE=BACKEND`: calls to the service's address, any port, go to the backend.
    #[arg(required = true)]
    services: Vec<String>,
}

impl Balance {
    /// Attaches the programs, and stays: they end with this process.
    pub(crate) fn run(&self) -> Result<()> {
        let cgroup = File::open(&self.cgroup).context("cannot open the cgroup")?;
        let mut links = Vec::new();
        for text in &self.services {
            let (service, backend) = text.split_once('=').context("not SERVICE=BACKEND")?;
            let service = SocketAddr::from((service.parse::<IpAddr>()?, 53));
            let backend: SocketAddr = backend.parse()?;
            for (kind, is_forth) in V6.into_iter().chain(
                if service.is_ipv4() { &V4[..] } else { &[] }
                    .iter()
                    .copied(),
            ) {
                let (from, to) = if is_forth {
                    (service, backend)
                } else {
                    (backend, service)
                };
                let code = if kind_is_v4(kind) {
                    v4(from, to)?
                } else {
                    v6(from, to)
                };
                let program = load(&code, kind).context("cannot load")?;
                links.push(link(program, &cgroup, kind).context("cannot attach")?);
            }
        }
        println!("ready");
        loop {
            std::thread::park();
        }
    }
}

fn kind_is_v4(kind: u32) -> bool {
    V4.iter().any(|(known, _)| *known == kind)
}

/// One instruction.
fn instruction(op: u8, registers: u8, offset: i16, value: u32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([op, registers, low, high, a, b, c, d])
}

/// `if (ctx.words == from) { ctx.words = to; ctx.port = port }; return 1`
fn replace(pairs: &[(i16, u32, u32)], port: u16) -> Vec<u64> {
    // r6 = ctx
    let mut code = vec![instruction(0xbf, 0x16, 0, 0)];
    let then = pairs.len() * 2 + 2;
    for (number, (at, from, _)) in pairs.iter().enumerate() {
        let left = (pairs.len() - number - 1) * 3;
        code.push(instruction(0x61, 0x63, *at, 0));
        code.push(instruction(0xb4, 0x02, 0, *from));
        code.push(instruction(0x5e, 0x23, (left + then) as i16, 0));
    }
    for (at, _, to) in pairs {
        code.push(instruction(0xb4, 0x02, 0, *to));
        code.push(instruction(0x63, 0x26, *at, 0));
    }
    code.push(instruction(0xb4, 0x02, 0, u32::from(port.to_be())));
    code.push(instruction(0x63, 0x26, USER_PORT, 0));
    code.push(instruction(0xb7, 0x00, 0, 1));
    code.push(instruction(0x95, 0, 0, 0));
    code
}

fn v4(from: SocketAddr, to: SocketAddr) -> Result<Vec<u64>> {
    let (IpAddr::V4(a), IpAddr::V4(b)) = (from.ip(), to.ip()) else {
        anyhow::bail!("service and backend of one family");
    };
    let word = |address: std::net::Ipv4Addr| u32::from_ne_bytes(address.octets());
    Ok(replace(&[(USER_IP4, word(a), word(b))], to.port()))
}

fn v6(from: SocketAddr, to: SocketAddr) -> Vec<u64> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let (from_bytes, to_bytes) = (bytes(from.ip()), bytes(to.ip()));
    let (from_words, _) = from_bytes.as_chunks::<4>();
    let (to_words, _) = to_bytes.as_chunks::<4>();
    let places = [USER_IP6, USER_IP6 + 4, USER_IP6 + 8, USER_IP6 + 12];
    let pairs: Vec<_> = places
        .into_iter()
        .zip(from_words.iter().zip(to_words))
        .map(|(at, (a, b))| (at, u32::from_ne_bytes(*a), u32::from_ne_bytes(*b)))
        .collect();
    replace(&pairs, to.port())
}

fn bpf(command: libc::c_long, attr: &[u64]) -> io::Result<RawFd> {
    // SAFETY: the attribute has the size that is given, and what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}

fn two(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn load(code: &[u64], kind: u32) -> io::Result<RawFd> {
    let license = c"GPL";
    bpf(
        BPF_PROG_LOAD,
        &[
            two(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, code.len() as u32),
            code.as_ptr() as u64,
            license.as_ptr() as u64,
            0,
            0,
            0,
            0,
            0,
            // prog_ifindex, expected_attach_type
            two(0, kind),
        ],
    )
}

fn link(program: RawFd, cgroup: &File, kind: u32) -> io::Result<RawFd> {
    bpf(
        BPF_LINK_CREATE,
        &[two(program as u32, cgroup.as_raw_fd() as u32), two(kind, 0)],
    )
}
