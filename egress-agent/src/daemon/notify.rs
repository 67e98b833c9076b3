//! Tells a service manager how the agent fares, sd_notify(3): `Type=notify` of systemd.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use tracing::warn;

/// The attached hooks enforce, or audit.
pub(super) fn ready(mode: &str) {
    tell(&format!("READY=1\nSTATUS={mode}: data plane attached"));
}

/// The agent ends; the data plane stays.
pub(super) fn stopping() {
    tell("STOPPING=1\nSTATUS=ending; the data plane stays");
}

/// The control task runs.
pub(super) fn alive() {
    tell("WATCHDOG=1");
}

/// How often the service manager wants to hear that the agent lives; none if it does not.
pub(super) fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let pid = number("WATCHDOG_PID");
    let is_ours = pid.is_none_or(|pid| pid == u64::from(std::process::id()));
    let limit_us = number("WATCHDOG_USEC").filter(|limit_us| is_ours && *limit_us > 0)?;
    // sd_watchdog_enabled(3): half of the time.
    Some(Duration::from_micros(limit_us.div_euclid(2)))
}

fn tell(text: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, text) {
        warn!(%error, "the service manager cannot be told");
    }
}

fn send(socket: &OsStr, text: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // Never waits: a manager that does not read is none of ours.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("egress-notify-{}", std::process::id());
        let hidden = SocketAddr::from_abstract_name(&name).expect("a name");
        for (socket, text) in [
            (
                UnixDatagram::bind(&path),
                path.to_str().expect("plain").to_owned(),
            ),
            (UnixDatagram::bind_addr(&hidden), format!("@{name}")),
        ] {
            let socket = socket.expect("is bound");
            send(OsStr::new(&text), "READY=1").expect("is sent");
            let mut bytes = [0; 64];
            let length = socket.recv(&mut bytes).expect("is heard");
            assert_eq!(&bytes[..length], b"READY=1");
        }
        assert!(send(OsStr::new("/nowhere/notify"), "READY=1").is_err());
    }
}
