//! The virtual machine, and commands in it.

use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use egress_tests::{interrupt, process::Running};

/// How long the kernel and the first process may take.
const BOOT_LIMIT: Duration = Duration::from_mins(10);
/// How long an answer may be on its way.
const GRACE: Duration = Duration::from_mins(2);
/// How often a wait looks whether it should end.
const TICK: Duration = Duration::from_millis(200);

/// Parts of the machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: PathBuf,
    pub(crate) cpu: String,
    pub(crate) initramfs: PathBuf,
    /// The disk that it writes to, so that its files outlive a reboot.
    pub(crate) disk: PathBuf,
    /// An archive that it reads as a second disk.
    pub(crate) images: PathBuf,
    /// The folder for its console and its socket.
    pub(crate) dir: PathBuf,
}

/// A running virtual machine; killed on drop, and with us.
#[derive(Debug)]
pub(crate) struct Guest {
    qemu: Running,
    control: BufReader<UnixStream>,
    commands: u64,
}

/// Output and exit code of a command in the guest.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl Guest {
    /// Boots, and waits until it takes commands.
    pub(crate) fn boot(machine: &Machine) -> Result<Self> {
        let socket = machine.dir.join("control.sock");
        let _ = fs::remove_file(&socket); // of the boot before
        let listener = UnixListener::bind(&socket).context("cannot make the control socket")?;
        listener.set_nonblocking(true)?;
        let errors = machine.dir.join("qemu.log");
        let mut qemu = Running::start(&mut command(machine, &socket), &errors)?;
        let end = Instant::now() + BOOT_LIMIT;
        let control = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("no control connection"),
            }
            if let Some(status) = qemu.ended() {
                bail!("qemu ended ({status}): {}", qemu.errors().trim());
            }
            pause(end, "qemu does not connect")?;
        };
        control.set_nonblocking(false)?;
        control.set_read_timeout(Some(TICK))?;
        let mut guest = Self {
            qemu,
            control: BufReader::new(control),
            commands: 0,
        };
        guest.run("true", BOOT_LIMIT).with_context(|| {
            let console = fs::read(machine.dir.join("console.log")).unwrap_or_default();
            let console = String::from_utf8_lossy(&console).into_owned();
            let lines: Vec<&str> = console.lines().rev().take(30).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            format!(
                "the guest does not boot; its console:\n{}",
                lines.join("\n")
            )
        })?;
        Ok(guest)
    }

    /// Runs a script in the guest's shell.
    pub(crate) fn run(&mut self, script: &str, limit: Duration) -> Result<Answer> {
        // It is ended there, so that the next one finds a shell.
        let end = Instant::now() + limit + GRACE;
        self.commands += 1;
        let number = self.commands;
        let stream = self.control.get_mut();
        write!(
            stream,
            "{number} {} {}\n{script}",
            script.len(),
            limit.as_secs()
        )
        .and_then(|()| stream.flush())
        .context("the guest takes no command")?;
        // An answer to one that was given up may come first.
        loop {
            let head = self
                .line(end)
                .with_context(|| format!("in the guest: {script}"))?;
            let mut words = head.split_whitespace();
            let mut number_in_head = || words.next().and_then(|word| word.parse::<i64>().ok());
            let (Some(answered), Some(code), Some(length)) =
                (number_in_head(), number_in_head(), number_in_head())
            else {
                bail!("not an answer of the guest: {head}");
            };
            let text = self.bytes(usize::try_from(length)?, end)?;
            if u64::try_from(answered)? == number {
                return Ok(Answer {
                    code: i32::try_from(code)?,
                    text: String::from_utf8_lossy(&text).into_owned(),
                });
            }
        }
    }

    /// Runs a script that must succeed, and takes what it prints.
    pub(crate) fn get(&mut self, script: &str, limit: Duration) -> Result<String> {
        let answer = self.run(script, limit)?;
        if answer.code != 0 {
            bail!(
                "in the guest: {script}\nexit status {}\n{}",
                answer.code,
                answer.text
            );
        }
        Ok(answer.text)
    }

    /// Writes what it has in memory to its disk, and cuts the power.
    pub(crate) fn power_off(mut self) -> Result<()> {
        self.run("sync", Duration::from_mins(1))?;
        self.qemu.kill();
        Ok(())
    }

    fn line(&mut self, end: Instant) -> Result<String> {
        let mut line = String::new();
        loop {
            match self.control.read_line(&mut line) {
                Ok(0) => bail!("the guest is gone: {}", self.qemu.errors().trim()),
                Ok(_) if line.ends_with('\n') => return Ok(line),
                Ok(_) => {}
                Err(error) if is_pause(&error) => pause(end, "no answer")?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn bytes(&mut self, length: usize, end: Instant) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.control.read(&mut bytes[filled..]) {
                Ok(0) => bail!("the guest is gone"),
                Ok(count) => filled += count,
                Err(error) if is_pause(&error) => pause(end, "half an answer")?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }
}

fn is_pause(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// Waits a little, unless it is over.
fn pause(end: Instant, over: &str) -> Result<()> {
    if interrupt::requested() {
        bail!("interrupted");
    }
    if Instant::now() >= end {
        bail!("{over} in time");
    }
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

/// QEMU's command: it emulates, reaches nothing but this machine, and nothing reaches it.
fn command(machine: &Machine, socket: &Path) -> Command {
    // It ends with us, however we end, and leaves room for other work.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    let file = |path: &Path| path.display().to_string();
    command
        .arg("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=single,tb-size=512", "-smp", "1"])
        .args(["-cpu", &machine.cpu, "-m", "3072"])
        .args(["-display", "none", "-monitor", "none", "-nodefaults"])
        .args(["-no-user-config", "-no-reboot"])
        .args([
            "-serial",
            &format!("file:{}", file(&machine.dir.join("console.log"))),
        ])
        .args(["-kernel", &file(&machine.kernel)])
        .args(["-initrd", &file(&machine.initramfs)])
        .args([
            "-append",
            "console=ttyS0 panic=-1 loglevel=5 random.trust_cpu=on",
        ])
        .args([
            "-drive",
            &format!(
                "file={},format=raw,if=virtio,cache=unsafe",
                file(&machine.disk)
            ),
        ])
        .args([
            "-drive",
            &format!(
                "file={},format=raw,if=virtio,readonly=on",
                file(&machine.images)
            ),
        ])
        .args(["-nic", "user,model=virtio-net-pci"])
        .args(["-device", "virtio-serial-pci"])
        .args([
            "-chardev",
            &format!("socket,id=control,path={}", file(socket)),
        ])
        .args(["-device", "virtserialport,chardev=control,name=control"]);
    command
}
