//! QEMU's command line, as a pure function of what the VM is.
//!
//! The one rule: no text that a tenant chose is on it, apart from numbers and an address that were parsed first. File
//! names are relative to the VM's folder, which is QEMU's working directory; so a data folder may be as deep as it likes
//! although the path of a unix socket may not be longer than 107 bytes.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use holdfast_model::guest::{PORT_NAME, PROBE_ARG};
use holdfast_model::node::Accelerator;
use holdfast_model::vm::VmSpec;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::hypervisor::Fault;

/// Names of the files in a VM's folder.
pub const BOOT_DISK: &str = "boot.qcow2";
pub const DATA_DISK: &str = "data.qcow2";
pub const QMP_SOCKET: &str = "qmp.sock";
pub const AGENT_SOCKET: &str = "agent.sock";
pub const PID_FILE: &str = "qemu.pid";
pub const SERIAL_LOG: &str = "serial.log";
pub const STDOUT_LOG: &str = "stdout.log";
pub const STDERR_LOG: &str = "stderr.log";

/// What is booted.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub cmdline: String,
    /// There is a root file, and so a boot disk.
    pub boot_disk: bool,
}

/// Memory for translated code under TCG, in MiB; QEMU's default takes a gigabyte.
const TCG_BUFFER_MB: u32 = 64;

fn accel(accelerator: Accelerator) -> [OsString; 4] {
    let (accel, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        // One thread for all vCPUs: with one each, QEMU 7.2 now and then runs kernel code that another vCPU has just
        // patched, and the guest panics (docs/adr/0011).
        _ => (format!("tcg,thread=single,tb-size={TCG_BUFFER_MB}"), "max"),
    };
    ["-accel".into(), accel.into(), "-cpu".into(), cpu.into()]
}

/// Arguments for the VM of `spec`.
pub fn vm(spec: &VmSpec, kernel: &Kernel, accelerator: Accelerator) -> Result<Vec<OsString>, Fault> {
    let mut args: Vec<OsString> = Vec::with_capacity(64);
    let mut push = |words: &[&str]| args.extend(words.iter().map(Into::into));
    push(&["-name", &format!("holdfast-{}", spec.uuid), "-uuid", &spec.uuid.to_string()]);
    push(&["-machine", "q35"]);
    args.extend(accel(accelerator));
    let mut push = |words: &[&str]| args.extend(words.iter().map(Into::into));
    push(&["-smp", &spec.vcpu.max(1).to_string(), "-m", &format!("{}M", spec.memory_mb)]);
    push(&["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-pidfile", PID_FILE]);
    push(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    push(&["-qmp", &format!("unix:{QMP_SOCKET},server=on,wait=off")]);
    push(&["-chardev", &format!("file,id=serial,path={SERIAL_LOG},append=on"), "-serial", "chardev:serial"]);
    let disks = [("boot", BOOT_DISK), ("data", DATA_DISK)];
    for (id, file) in disks.into_iter().filter(|(id, _)| *id != "boot" || kernel.boot_disk) {
        push(&["-drive", &format!("if=none,id={id},file={file},format=qcow2,discard=unmap")]);
        push(&["-device", &format!("virtio-blk-pci,drive={id},serial={id}")]);
    }
    push(&["-device", "virtio-serial-pci"]);
    push(&["-chardev", &format!("socket,id=agent,path={AGENT_SOCKET},server=on,wait=off")]);
    push(&["-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
    push(&["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]);
    push(&["-netdev", &netdev(spec)?]);
    push(&["-device", &format!("virtio-net-pci,netdev=net0,mac={},romfile=", mac(spec.uuid))]);
    push_kernel(&mut args, kernel, "");
    Ok(args)
}

fn push_kernel(args: &mut Vec<OsString>, kernel: &Kernel, extra: &str) {
    args.extend(["-kernel".into(), kernel.kernel.clone().into(), "-initrd".into(), kernel.initrd.clone().into()]);
    args.extend(["-append".into(), format!("{}{extra}", kernel.cmdline).into()]);
}

/// Arguments for a guest that only says that it booted; its console is standard output.
pub fn probe(kernel: &Kernel, accelerator: Accelerator) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["-machine".into(), "q35".into()];
    args.extend(accel(accelerator));
    args.extend(["-m", "256M", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot"].map(Into::into));
    args.extend(["-serial", "stdio"].map(Into::into));
    push_kernel(&mut args, kernel, &format!(" {PROBE_ARG}"));
    args
}

/// User-mode network with one forward per published port.
fn netdev(spec: &VmSpec) -> Result<String, Fault> {
    let mut netdev = "user,id=net0".to_owned();
    for port in &spec.ports {
        let bad = |why: &str| Fault::lasting("bad_spec", format!("port {}: {why}", port.host_port));
        let address: IpAddr = port.host_address.parse().map_err(|_| bad("its host address is not an IP address"))?;
        if port.protocol != "tcp" {
            return Err(bad("only tcp can be published"));
        }
        let address = match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(_) => return Err(bad("user-mode networking publishes on IPv4 only")),
        };
        netdev.push_str(&format!(",hostfwd=tcp:{address}:{}-:{}", port.host_port, port.vm_port));
    }
    Ok(netdev)
}

/// A locally administered address that stays the same for the life of the VM.
fn mac(uuid: Uuid) -> String {
    let hash = Sha256::digest(uuid.as_bytes());
    format!("02:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", hash[0], hash[1], hash[2], hash[3], hash[4])
}

/// True when `argv` (the words of `/proc/<pid>/cmdline`) and `cwd` are those of the VM in `folder`.
pub fn is_of_vm(argv: &[&[u8]], cwd: &Path, uuid: Uuid, folder: &Path) -> bool {
    let name = uuid.to_string();
    cwd == folder && argv.windows(2).any(|pair| pair[0] == b"-uuid" && pair[1] == name.as_bytes())
}

#[cfg(test)]
mod tests {
    use holdfast_model::vm::{PortMapping, RestartPolicy};

    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            uuid: Uuid::from_u128(0x1234),
            name: "web,id=x".into(),
            app_id: String::new(),
            instance_id: String::new(),
            image: "holdfast-1".into(),
            vcpu: 2,
            memory_mb: 2048,
            disk_gb: 20,
            ports: vec![PortMapping {
                protocol: "tcp".into(),
                host_address: "127.0.0.1".into(),
                host_port: 20000,
                vm_port: 8080,
            }],
            compose_hash: String::new(),
            app_compose: "{}".into(),
            encrypted_env: Some("c0ffee".into()),
            user_config: None,
            restart_policy: RestartPolicy::OnFailure,
        }
    }

    fn kernel() -> Kernel {
        let cmdline = "console=ttyS0 quiet".into();
        Kernel { kernel: "/i/bzImage".into(), initrd: "/i/initrd".into(), cmdline, boot_disk: true }
    }

    fn text(args: &[OsString]) -> String {
        args.iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ").replace(" -", "\n-")
    }

    #[test]
    fn the_command_line_of_a_vm() {
        let expected = "\
-name holdfast-00000000-0000-0000-0000-000000001234
-uuid 00000000-0000-0000-0000-000000001234
-machine q35
-accel tcg,thread=single,tb-size=64
-cpu max
-smp 2
-m 2048M
-nodefaults
-no-user-config
-nographic
-no-reboot
-pidfile qemu.pid
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-qmp unix:qmp.sock,server=on,wait=off
-chardev file,id=serial,path=serial.log,append=on
-serial chardev:serial
-drive if=none,id=boot,file=boot.qcow2,format=qcow2,discard=unmap
-device virtio-blk-pci,drive=boot,serial=boot
-drive if=none,id=data,file=data.qcow2,format=qcow2,discard=unmap
-device virtio-blk-pci,drive=data,serial=data
-device virtio-serial-pci
-chardev socket,id=agent,path=agent.sock,server=on,wait=off
-device virtserialport,chardev=agent,name=org.holdfast.agent.0
-object rng-random,id=rng,filename=/dev/urandom
-device virtio-rng-pci,rng=rng
-netdev user,id=net0,hostfwd=tcp:127.0.0.1:20000-:8080
-device virtio-net-pci,netdev=net0,mac=02:d7:8b:e4:c4:19,romfile=
-kernel /i/bzImage
-initrd /i/initrd
-append console=ttyS0 quiet";
        let args = vm(&spec(), &kernel(), Accelerator::Tcg).expect("valid");
        let (shown, wanted) = (text(&args), expected.to_owned());
        let mac = mac(spec().uuid);
        assert_eq!(shown, wanted.replace("02:d7:8b:e4:c4:19", &mac));
        assert!(!shown.contains("web") && !shown.contains("c0ffee"));
        let args = text(&vm(&spec(), &kernel(), Accelerator::Kvm).expect("valid"));
        assert!(args.contains("-accel kvm\n-cpu host\n"));
    }

    #[test]
    fn a_port_that_is_no_port_is_refused() {
        for (address, protocol) in
            [("127.0.0.1,id=evil", "tcp"), ("::1", "tcp"), ("localhost", "tcp"), ("127.0.0.1", "udp")]
        {
            let mut spec = spec();
            spec.ports[0].host_address = address.into();
            spec.ports[0].protocol = protocol.into();
            let fault = vm(&spec, &kernel(), Accelerator::Tcg).expect_err(address);
            assert_eq!((fault.code, fault.retryable), ("bad_spec", false));
        }
    }

    #[test]
    fn a_process_is_known_by_uuid_and_folder() {
        let uuid = spec().uuid;
        let name = uuid.to_string();
        let argv: Vec<&[u8]> = vec![b"qemu", b"-uuid", name.as_bytes()];
        assert!(is_of_vm(&argv, Path::new("/a"), uuid, Path::new("/a")));
        assert!(!is_of_vm(&argv, Path::new("/b"), uuid, Path::new("/a")));
        assert!(!is_of_vm(&argv[..2], Path::new("/a"), uuid, Path::new("/a")));
    }
}
