//! A little host: one QEMU with our image, and the host's half of the guest protocol, blocking and with a limit on each
//! wait.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use holdfast_model::Timestamp;
use holdfast_model::guest::{Config, FromGuest, GuestState, Keys, PORT_NAME, ToGuest};
use holdfast_node::image::{Agent, BuildOptions, Image, build, load};

/// What one boot may take on a machine that does other things as well.
pub const BOOT: Duration = Duration::from_secs(240);
pub const SOON: Duration = Duration::from_secs(60);

/// VMs that run at a time: an emulated one takes one core, whatever its vCPUs.
const AT_A_TIME: usize = 2;

static FREE: (Mutex<usize>, Condvar) = (Mutex::new(AT_A_TIME), Condvar::new());

/// Leave to run a VM, given back when dropped.
struct Place;

impl Place {
    /// Waits until a VM may run.
    fn wait() -> Self {
        let free = FREE.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = FREE.1.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *FREE.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        FREE.1.notify_one();
    }
}

/// A guest's kernel fell over: not by the word of our PID 1, and not because that ended.
struct KernelFault(String);

/// Runs a test when there is room for its VM. A kernel that falls over under emulation (docs/adr/0011) says nothing about
/// the guest that is tested: the test begins again, at most twice, and says so.
pub fn emulated(test: fn()) {
    let _place = Place::wait();
    for left in [2, 1, 0] {
        let Err(panic) = std::panic::catch_unwind(test) else { return };
        match panic.downcast::<KernelFault>() {
            Ok(fault) if left > 0 => eprintln!("a guest's kernel fell over, once more:\n{}", fault.0),
            Ok(fault) => panic!("a guest's kernel fell over three times:\n{}", fault.0),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// The image of this source tree, built if it is not there yet.
pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let image_dir = std::env::var_os("HOLDFAST_IMAGE_DIR").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/holdfast/images"),
            PathBuf::from,
        );
        let info = build(BuildOptions {
            image_dir: image_dir.clone(),
            agent: Agent::Path(agent()),
            name: None,
            extra_containers: Vec::new(),
            progress: &mut |line| eprintln!("image: {line}"),
            cancelled: &|| false,
        })
        .expect("the image builds");
        load(&image_dir, &info.name).expect("what was built can be loaded")
    })
}

fn agent() -> PathBuf {
    if let Some(path) = std::env::var_os("HOLDFAST_GUEST_AGENT") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = "x86_64-unknown-linux-gnu";
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--profile",
            "guest",
            "-p",
            "holdfast-guest",
            "--target",
            target,
            "--target-dir",
            "target/guest",
        ])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(&root)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the guest agent builds");
    root.join("target/guest").join(target).join("guest/holdfast-guest")
}

/// A running QEMU, killed when dropped.
pub struct Vm {
    pub dir: PathBuf,
    process: Arc<Mutex<Child>>,
    started: Instant,
    /// Host ports that lead to 8080 and 80 of the VM.
    pub port_8080: u16,
    pub port_80: u16,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let mut process = self.process.lock().expect("a child");
        let _ = process.kill();
        let _ = process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

fn qemu_img(arguments: &[&str]) {
    let status = Command::new("qemu-img").args(arguments).stdout(Stdio::null()).status().expect("qemu-img runs");
    assert!(status.success(), "qemu-img {arguments:?}");
}

impl Vm {
    /// Boots on the disks in `dir`, which are made if they are not there.
    pub fn start(dir: &Path, vcpu: u32) -> Self {
        let image = image();
        let (boot, data) = (dir.join("boot.qcow2"), dir.join("data.qcow2"));
        if !data.exists() {
            let rootfs = image.rootfs.as_ref().expect("our images have one");
            qemu_img(&[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                &rootfs.to_string_lossy(),
                "-F",
                "raw",
                &boot.to_string_lossy(),
            ]);
            qemu_img(&["create", "-q", "-f", "qcow2", &data.to_string_lossy(), "20G"]);
        }
        let (port_8080, port_80) = (free_port(), free_port());
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let _ = fs::remove_file(dir.join("agent.sock"));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M",
            "q35",
            "-accel",
            "tcg,thread=single,tb-size=64",
            "-cpu",
            "max",
            "-m",
            "2048",
            "-nodefaults",
            "-no-reboot",
        ]);
        qemu.args(["-display", "none", "-smp", &vcpu.to_string()]);
        qemu.args(["-kernel", &text(&image.kernel), "-initrd", &text(&image.initrd)]);
        qemu.args(["-append", image.metadata.cmdline.as_deref().unwrap_or_default()]);
        for (path, serial) in [(&boot, "boot"), (&data, "data")] {
            qemu.args(["-drive", &format!("file={},format=qcow2,if=none,id={serial}", path.display())]);
            qemu.args(["-device", &format!("virtio-blk-pci,drive={serial},serial={serial}")]);
        }
        qemu.args([
            "-device",
            "virtio-serial-pci",
            "-device",
            &format!("virtserialport,chardev=agent,name={PORT_NAME}"),
        ]);
        qemu.args([
            "-chardev",
            &format!("socket,id=agent,path={},server=on,wait=off", dir.join("agent.sock").display()),
        ]);
        let forwards = format!("hostfwd=tcp:127.0.0.1:{port_8080}-:8080,hostfwd=tcp:127.0.0.1:{port_80}-:80");
        qemu.args(["-netdev", &format!("user,id=net,{forwards}"), "-device", "virtio-net-pci,netdev=net"]);
        qemu.args(["-serial", &format!("file:{}", dir.join("serial.log").display())]);
        qemu.stdin(Stdio::null());
        let process = qemu.spawn().expect("QEMU starts");
        Self {
            dir: dir.to_owned(),
            process: Arc::new(Mutex::new(process)),
            started: Instant::now(),
            port_8080,
            port_80,
        }
    }

    pub fn seconds(&self) -> f32 {
        self.started.elapsed().as_secs_f32()
    }

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("serial.log")).unwrap_or_default()).into_owned()
    }

    /// Opens the port and begins a session.
    pub fn connect(&self, session: &str) -> Host {
        let end = Instant::now() + SOON;
        let stream = loop {
            match UnixStream::connect(self.dir.join("agent.sock")) {
                Ok(stream) => break stream,
                Err(e) => assert!(Instant::now() < end, "the port's socket: {e}"),
            }
            std::thread::yield_now();
        };
        let (send, messages) = channel();
        let reader = stream.try_clone().expect("a socket");
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if let Ok(message) = serde_json::from_slice::<FromGuest>(&line) {
                    let _ = send.send(message);
                }
            }
        });
        let mut host = Host {
            stream,
            messages,
            state: GuestState::default(),
            process: self.process.clone(),
            console: self.dir.join("serial.log"),
        };
        host.raw(b"\n");
        host.send(&ToGuest::Hello { session: session.to_owned() });
        let state = host.wait(BOOT, "HelloAck", |message| match message {
            FromGuest::HelloAck { session: theirs, state } if theirs == session => Some(state.clone()),
            _ => None,
        });
        host.state = state;
        host
    }

    /// Waits for an answer over HTTP and gives its body.
    pub fn http(&self, port: u16) -> String {
        let end = Instant::now() + BOOT;
        loop {
            if let Some(body) = get(port) {
                return body;
            }
            assert!(Instant::now() < end, "no answer on port {port}\n{}", self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The data disk of a VM that is off gets another size.
    pub fn resize_data(dir: &Path, size: &str) {
        qemu_img(&["resize", "-q", "-f", "qcow2", &dir.join("data.qcow2").to_string_lossy(), size]);
    }

    /// Waits until an answer over HTTP holds this.
    pub fn http_says(&self, port: u16, wanted: &str) {
        let end = Instant::now() + SOON;
        loop {
            let said = get(port);
            if said.as_ref().is_some_and(|body| body.contains(wanted)) {
                return;
            }
            assert!(Instant::now() < end, "not {wanted:?} but {said:?} on port {port}\n{}", self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until QEMU has ended by itself.
    pub fn ended(&mut self) {
        let end = Instant::now() + SOON;
        while self.process.lock().expect("a child").try_wait().expect("a child").is_none() {
            assert!(Instant::now() < end, "the VM did not power off\n{}", self.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: app\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.").then(|| answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()))?
}

/// The host's end of the port.
pub struct Host {
    stream: UnixStream,
    messages: Receiver<FromGuest>,
    pub state: GuestState,
    /// The VM's QEMU and where its console is written: how it ended is shown when it ends too early.
    process: Arc<Mutex<Child>>,
    console: PathBuf,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Host {
    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the port takes bytes");
    }

    pub fn send(&mut self, message: &ToGuest) {
        let mut line = serde_json::to_vec(message).expect("JSON");
        line.push(b'\n');
        self.raw(&line);
    }

    /// The next message that `pick` wants; others are passed over, states are remembered.
    pub fn wait<T>(&mut self, limit: Duration, what: &str, mut pick: impl FnMut(&FromGuest) -> Option<T>) -> T {
        let end = Instant::now() + limit;
        loop {
            match self.messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(message) => {
                    if let FromGuest::State(state) = &message {
                        self.state = state.clone();
                    }
                    if let Some(found) = pick(&message) {
                        return found;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what} in {limit:?}; last state: {:?}", self.state),
                Err(RecvTimeoutError::Disconnected) => {
                    let console = fs::read(&self.console).unwrap_or_default();
                    let console = String::from_utf8_lossy(&console[console.len().saturating_sub(6000)..]).into_owned();
                    let end = self.process.lock().expect("a child").wait();
                    let report =
                        format!("the VM ended ({end:?}) before {what}; last state: {:?}\n{console}", self.state);
                    let ours = ["holdfast: power off", "Attempted to kill init"];
                    if end.is_ok_and(|status| status.success()) && !ours.iter().any(|line| console.contains(line)) {
                        std::panic::panic_any(KernelFault(report));
                    }
                    panic!("{report}")
                }
            }
        }
    }

    /// Messages that come within `limit`.
    pub fn drain(&mut self, limit: Duration) -> Vec<FromGuest> {
        let end = Instant::now() + limit;
        let mut found = Vec::new();
        while let Ok(message) = self.messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
            found.push(message);
        }
        found
    }

    pub fn give_config(&mut self, app_compose: &str, encrypted_env: Option<String>) {
        self.give(config(1, app_compose, encrypted_env));
    }

    pub fn give(&mut self, config: Config) {
        self.wait(SOON, "NeedConfig", |m| matches!(m, FromGuest::NeedConfig).then_some(()));
        self.send(&ToGuest::Config(Box::new(config)));
    }

    /// Gives another configuration to a guest that runs, unasked, and waits for the end of what it makes of it.
    pub fn change(&mut self, config: Config) -> GuestState {
        let revision = config.revision;
        self.send(&ToGuest::Config(Box::new(config)));
        self.wait(BOOT, "end of the change", |m| match m {
            FromGuest::State(s) if s.app_revision == revision && over(s) => Some(s.clone()),
            _ => None,
        })
    }

    pub fn wait_need_keys(&mut self) {
        self.wait(SOON, "NeedKeys", |m| matches!(m, FromGuest::NeedKeys).then_some(()));
    }

    pub fn give_keys(&mut self, keys: &Keys) {
        self.wait_need_keys();
        self.send(&ToGuest::Keys(keys.clone()));
    }

    /// Waits for the end of the boot: done, or an error.
    pub fn booted(&mut self) -> GuestState {
        if !over(&self.state) {
            self.wait(BOOT, "end of boot", |m| matches!(m, FromGuest::State(s) if over(s)).then_some(()));
        }
        self.state.clone()
    }

    pub fn shut_down(&mut self, vm: &mut Vm) {
        self.send(&ToGuest::Shutdown { grace_s: 10 });
        let last =
            |m: &FromGuest| matches!(m, FromGuest::State(s) if s.shutdown_progress.as_deref() == Some("powering off"));
        self.wait(SOON, "power off", |m| last(m).then_some(()));
        vm.ended();
    }
}

fn over(state: &GuestState) -> bool {
    state.boot_progress == "done" || state.boot_error.is_some()
}

pub fn config(revision: u64, app_compose: &str, encrypted_env: Option<String>) -> Config {
    Config {
        vm_uuid: "2f4a".to_owned(),
        app_id: "a".repeat(40),
        instance_id: "b".repeat(40),
        hostname: "test-vm".to_owned(),
        app_compose: app_compose.to_owned(),
        encrypted_env,
        user_config: None,
        revision,
        now: now(),
    }
}

pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Timestamp(i64::try_from(since.as_micros()).expect("a time of this age"))
}
