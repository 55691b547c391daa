//! Mounting as the machine does it: by lines of an fstab, all at once or one by one, again and again, and with clear words when it cannot be. What systemd
//! makes of an fstab is in `tests/package`.

use crate::harness::{Cluster, Said, install_mount_helper, run};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

/// mount(8)'s exit code for what failed; and for some that did.
const FAILED: i32 = 32;
const SOME_FAILED: i32 = 64;
const NOBODY: u32 = 65534;

/// An fstab of its own, and the directories in it, which are unmounted in the end.
struct Fstab {
    file: PathBuf,
    directories: Vec<PathBuf>,
}

impl Fstab {
    /// Lines of volume, node that mounts it, and options.
    fn new(cluster: &Cluster, lines: &[(&str, usize, &str)]) -> Self {
        install_mount_helper();
        let mut text = String::new();
        let mut directories = Vec::new();
        for (at, (volume, node, options)) in lines.iter().enumerate() {
            // A name with a space, as fstab(5) has it.
            let directory = cluster.directory.join(format!("mount {at}"));
            fs::create_dir_all(&directory).unwrap();
            let place = directory.display().to_string().replace(' ', "\\040");
            let socket = cluster.nodes[*node].socket();
            text += &format!(
                "{volume} {place} fuse.storageos {options},socket={} 0 0\n",
                socket.display()
            );
            directories.push(directory);
        }
        let file = cluster.directory.join("fstab");
        fs::write(&file, text).unwrap();
        Self { file, directories }
    }

    fn mount(&self, arguments: &[&str]) -> Said {
        run("mount", &[&["-T", self.file.to_str().unwrap()], arguments].concat())
    }

    /// `mount DIRECTORY`, for a line.
    fn mount_one(&self, line: usize) -> Said {
        self.mount(&[self.directories[line].to_str().unwrap()])
    }

    fn unmount(&self, line: usize) -> Said {
        run("umount", &[self.directories[line].to_str().unwrap()])
    }

    /// The options of what is mounted there, once for each time that something is.
    fn mounted(&self, line: usize) -> Vec<String> {
        let place = self.directories[line].display().to_string().replace(' ', "\\040");
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        fields
            .filter(|f| f[1] == place && f[2] == "fuse.storageos")
            .map(|f| f[3].to_owned())
            .collect()
    }
}

impl Drop for Fstab {
    fn drop(&mut self) {
        for line in 0..self.directories.len() {
            for _ in self.mounted(line) {
                run("umount", &["-l", "-i", self.directories[line].to_str().unwrap()]);
            }
        }
    }
}

#[test]
fn an_fstab_is_mounted_once_however_often_it_is_asked_for() {
    let cluster = Cluster::start(1);
    cluster.create("data", 0);
    cluster.create("logs", 0);
    let systemd = "_netdev,nofail,x-systemd.automount,x-systemd.mount-timeout=2min";
    let fstab = Fstab::new(
        &cluster,
        &[
            ("default/data", 0, systemd),
            ("default/logs", 0, "_netdev,noatime,nosuid,user"),
            ("default/data", 0, "noauto,ro"),
        ],
    );
    for _ in 0..2 {
        fstab.mount(&["-a"]).ok();
        assert_eq!(fstab.mounted(0).len(), 1);
        assert_eq!(fstab.mounted(1).len(), 1);
        assert!(fstab.mounted(2).is_empty());
    }
    let options = &fstab.mounted(1)[0];
    assert!(options.contains("noatime") && options.contains("nosuid"), "{options}");
    fs::write(fstab.directories[0].join("f"), "x").unwrap();
    fstab.unmount(0).ok();
    fstab.mount_one(2).ok();
    assert_eq!(fs::read_to_string(fstab.directories[2].join("f")).unwrap(), "x");
    let refused = fs::write(fstab.directories[2].join("f"), "y").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    fstab.unmount(2).ok();
    fstab.mount(&["-a"]).ok();
    fstab.unmount(0).ok();
    fstab.unmount(1).ok();
    fstab.unmount(1).fails_with(FAILED);
}

#[test]
fn what_cannot_be_mounted_is_told_with_the_exit_code_of_mount() {
    let mut cluster = Cluster::start(2);
    cluster.create("data", 0);
    cluster.create("other", 0);
    let fstab = Fstab::new(
        &cluster,
        &[
            ("default/data", 0, "nofail"),
            ("default/data", 1, "nofail"),
            ("default/nothing", 0, "nofail"),
            ("default/other", 1, "noauto,frobnicate"),
            ("default/other", 1, "noauto"),
        ],
    );
    fstab.mount_one(0).ok();
    let said = fstab.mount_one(1).fails_with(FAILED);
    assert!(said.contains("already mounted on node n1"), "{said}");
    let said = fstab.mount_one(2).fails_with(FAILED);
    assert!(said.contains("`default/nothing` does not exist"), "{said}");
    let said = fstab.mount_one(3).fails_with(1);
    assert!(said.contains("unknown option `frobnicate`"), "{said}");
    fstab.unmount(0).ok();
    fstab.mount(&["-a"]).fails_with(SOME_FAILED);
    assert_eq!(fstab.mounted(0).len(), 1);
    fstab.unmount(0).ok();
    cluster.nodes[1].stop();
    let said = fstab.mount_one(4).fails_with(FAILED);
    assert!(
        said.contains("no daemon answers") && said.contains("storageos node run"),
        "{said}"
    );
    fs::remove_dir(&fstab.directories[0]).unwrap();
    let said = fstab.mount_one(0).fails_with(FAILED);
    assert!(said.contains("mount 0"), "{said}");
}

#[test]
fn users_get_what_the_permissions_of_files_say() {
    let cluster = Cluster::start(1);
    cluster.create("data", 0);
    let fstab = Fstab::new(&cluster, &[("default/data", 0, "user,noauto")]);
    // To the directory that is mounted on, too.
    let closed = fs::metadata(&cluster.directory).unwrap().permissions();
    fs::set_permissions(&cluster.directory, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&fstab.file, fs::Permissions::from_mode(0o644)).unwrap();
    let as_nobody = |script: &str| run("runuser", &["-u", "nobody", "--", "sh", "-c", script]);
    let place = fstab.directories[0].display().to_string();
    let said = as_nobody(&format!("mount -T {} '{place}'", fstab.file.display()));
    assert_ne!(said.code, 0, "a user has mounted a volume");
    assert!(fstab.mounted(0).is_empty());
    fstab.mount_one(0).ok();
    for (name, owner, mode) in [
        ("public", 0, 0o1777),
        ("theirs", NOBODY, 0o700),
        ("ours", 0, 0o700),
        ("shown", 0, 0o755),
    ] {
        let directory = fstab.directories[0].join(name);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
        chown(&directory, Some(owner), Some(owner)).unwrap();
        let written = as_nobody(&format!("echo x >'{place}/{name}/file' && cat '{place}/{name}/file'"));
        assert_eq!(
            written.code == 0,
            ["public", "theirs"].contains(&name),
            "{name}: {}",
            written.err
        );
        let listed = as_nobody(&format!("ls '{place}/{name}'"));
        assert_eq!(listed.code == 0, name != "ours", "{name}: {}", listed.err);
    }
    let said = as_nobody(&format!("umount '{place}'"));
    assert_ne!(said.code, 0, "a user has unmounted a volume");
    fstab.unmount(0).ok();
    fs::set_permissions(&cluster.directory, closed).unwrap();
}
