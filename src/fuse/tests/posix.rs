//! What POSIX promises, through the kernel.

use super::{MemoryDevice, eventually, mounted, mounted_from, python};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

#[test]
fn files_directories_and_links_survive_a_remount() {
    let mount = mounted(64);
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/a"), b"hello").unwrap();
    fs::hard_link(mount.path("d/a"), mount.path("b")).unwrap();
    std::os::unix::fs::symlink("d/a", mount.path("l")).unwrap();
    fs::write(mount.path("over"), b"old").unwrap();
    fs::write(mount.path("new"), vec![7; 300_000]).unwrap();
    fs::rename(mount.path("new"), mount.path("over")).unwrap();
    let before = fs::metadata(mount.path("over")).unwrap();
    let mount = mount.remounted();
    assert_eq!(fs::read(mount.path("l")).unwrap(), b"hello");
    assert_eq!(fs::metadata(mount.path("b")).unwrap().nlink(), 2);
    assert_eq!(fs::read(mount.path("over")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::metadata(mount.path("new")).unwrap_err().kind(), ErrorKind::NotFound);
    let after = fs::metadata(mount.path("over")).unwrap();
    assert_eq!(
        (before.ino(), before.modified().unwrap()),
        (after.ino(), after.modified().unwrap())
    );
}

#[test]
fn a_mapped_file_keeps_what_was_written_through_the_mapping() {
    let mount = mounted(64);
    python(
        mount.directory.path(),
        "import mmap,os\n\
         f=open('m','w+b'); f.truncate(1<<20); m=mmap.mmap(f.fileno(),1<<20)\n\
         m[5000:5005]=b'hello'; m[(1<<20)-3:]=b'end'; f.seek(5000); assert f.read(5)==b'hello'\n\
         m.flush(); m.close(); f.close()",
    );
    let mount = mount.remounted();
    let content = fs::read(mount.path("m")).unwrap();
    assert_eq!(content.len(), 1 << 20);
    assert_eq!(
        (&content[5000..5005], &content[(1 << 20) - 3..]),
        (&b"hello"[..], &b"end"[..])
    );
}

#[test]
fn an_unlinked_file_lives_while_open_and_then_gives_its_space_back() {
    let mount = mounted(64);
    let free = || rustix::fs::statvfs(mount.directory.path()).unwrap().f_bfree;
    let before = free();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("f"))
        .unwrap();
    file.write_all(&vec![1; 8 << 20]).unwrap();
    file.sync_all().unwrap();
    fs::remove_file(mount.path("f")).unwrap();
    file.write_all_at(b"x", 5).unwrap();
    file.sync_all().unwrap();
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut content).unwrap();
    assert_eq!((content.len(), content[5], content[6]), (8 << 20, b'x', 1));
    assert!(free() < before);
    drop(file);
    eventually("the space is back", || free() == before);
}

#[test]
fn two_appenders_lose_nothing() {
    let mount = mounted(64);
    let open = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(mount.path("log"))
            .unwrap()
    };
    let (mut a, mut b) = (open(), open());
    for i in 0..100 {
        writeln!(a, "a{i}").unwrap();
        writeln!(b, "b{i}").unwrap();
    }
    let text = fs::read_to_string(mount.path("log")).unwrap();
    assert_eq!(text.lines().count(), 200);
    assert_eq!(text.lines().nth(1), Some("b0"));
}

#[test]
fn a_large_directory_is_listed_whole_even_while_names_go() {
    let mount = mounted(64);
    fs::create_dir(mount.path("d")).unwrap();
    for i in 0..3000 {
        File::create(mount.path(&format!("d/{i}-{}", "n".repeat(100)))).unwrap();
    }
    let names = || {
        fs::read_dir(mount.path("d"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    let mut all = names();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 3000);
    // Removing while reading, as `rm -r` does.
    for entry in fs::read_dir(mount.path("d")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(names().len(), 0);
    fs::remove_dir(mount.path("d")).unwrap();
}

#[test]
fn a_sparse_file_beyond_4_gib_takes_only_what_was_written() {
    let mount = mounted(64);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("s"))
        .unwrap();
    file.write_all_at(b"far", 5 << 30).unwrap();
    file.sync_all().unwrap();
    let mount = mount.remounted_after(file);
    let file = File::open(mount.path("s")).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!(found.len(), (5 << 30) + 3);
    assert!(found.blocks() <= 16, "{} blocks", found.blocks());
    let mut three = [0; 3];
    file.read_exact_at(&mut three, 5 << 30).unwrap();
    assert_eq!(&three, b"far");
    file.read_exact_at(&mut three, 3 << 30).unwrap();
    assert_eq!(three, [0; 3]);
}

impl super::Mounted {
    fn remounted_after(self, file: File) -> Self {
        drop(file);
        self.remounted()
    }
}

#[test]
fn a_full_volume_says_so_and_works_again_after_a_removal() {
    let mount = mounted(16);
    let file = File::create(mount.path("big")).unwrap();
    let chunk = vec![3; 1 << 20];
    let mut written = 0_u64;
    let error = loop {
        let wrote = file.write_all_at(&chunk, written).and_then(|()| file.sync_data());
        match wrote {
            Ok(()) => written += 1 << 20,
            Err(error) => break error,
        }
        assert!(written <= 16 << 20, "more than the volume holds");
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(written >= 14 << 20, "only {written} bytes fitted");
    drop(file);
    fs::remove_file(mount.path("big")).unwrap();
    let again =
        || File::create(mount.path("again")).and_then(|f| f.write_all_at(&chunk, 0).and_then(|()| f.sync_all()));
    eventually("there is space again", || again().is_ok());
}

#[test]
fn statfs_shows_the_volumes_size_and_what_is_free() {
    let mount = mounted(64);
    let stat = || rustix::fs::statvfs(mount.directory.path()).unwrap();
    let before = stat();
    assert_eq!((before.f_blocks * before.f_frsize, before.f_namemax), (64 << 20, 255));
    fs::write(mount.path("f"), vec![1; 4 << 20]).unwrap();
    assert_eq!(before.f_bfree - stat().f_bfree, (4 << 20) / before.f_frsize);
    assert!(before.f_files > 1000 && before.f_ffree < before.f_files);
}

#[test]
fn extended_attributes_are_kept() {
    let mount = mounted(64);
    let said = python(
        mount.directory.path(),
        "import os,errno\n\
         open('f','w'); os.setxattr('f','user.a',b'1'*5000); os.setxattr('f','user.b',b''); os.setxattr('f','trusted.t',b'x')\n\
         os.removexattr('f','user.b'); print(sorted(os.listxattr('f')), len(os.getxattr('f','user.a')))\n\
         try: os.getxattr('f','user.b')\n\
         except OSError as e: print(errno.errorcode[e.errno])\n\
         os.setuid(65534); print(os.listxattr('f'))",
    );
    assert_eq!(said, "['trusted.t', 'user.a'] 5000\nENODATA\n['user.a']");
}

/// What ext4 answers to the same script, to the letter.
#[test]
fn access_control_lists_are_kept_inherited_and_obeyed() {
    let mount = mounted(64);
    let script = r#"
umask 027
touch f; setfacl -m u:1000:rw,g:2000:r f; stat -c %a f; getfacl -cn f | tr '\n' ' '; echo
chmod 640 f; getfacl -cn f | tr '\n' ' '; echo
mkdir d; setfacl -d -m u:1000:rwx,g::r-x,o::--- d; getfacl -cn d | tr '\n' ' '; echo
touch d/f; mkdir d/s; mkfifo -m 666 d/p; ln -s x d/l
for n in f s p; do stat -c "%a" d/$n; getfacl -cn d/$n | tr '\n' ' '; echo; done
mkdir plain; touch plain/f; stat -c %a plain/f plain
setfacl -b f; stat -c %a f; getfacl -cn f | tr '\n' ' '; echo
setfacl -k d; getfacl -cn d | tr '\n' ' '; echo
setfacl -d -m u:1:r f 2>&1 | sed 's/.*: //'
chmod 755 .; touch g; chmod 600 g; setfacl -m u:65534:r g; echo secret > g
setpriv --reuid=65534 --regid=65534 --clear-groups cat g; setpriv --reuid=65533 --regid=65533 --clear-groups cat g 2>&1 | sed 's/.*: //'
setpriv --reuid=65534 --regid=65534 --clear-groups sh -c 'echo no > g' 2>&1 | sed 's/.*: //'
"#;
    let said = Command::new("bash")
        .args(["-c", script])
        .current_dir(mount.directory.path())
        .output()
        .unwrap();
    let golden = "660
user::rw- user:1000:rw- group::r-- group:2000:r-- mask::rw- other::---
user::rw- user:1000:rw- #effective:r-- group::r-- group:2000:r-- mask::r-- other::---
user::rwx group::r-x other::--- default:user::rwx default:user:1000:rwx default:group::r-x default:mask::rwx default:other::---
660
user::rw- user:1000:rwx #effective:rw- group::r-x #effective:r-- mask::rw- other::---
770
user::rwx user:1000:rwx group::r-x mask::rwx other::--- default:user::rwx default:user:1000:rwx default:group::r-x default:mask::rwx default:other::---
666
user::rw- user:1000:rwx #effective:rw- group::r-x #effective:r-- mask::rw- other::rw-
640
750
640
user::rw- group::r-- other::---
user::rwx group::r-x other::---
Only directories can have default ACLs
secret
Permission denied
Permission denied
";
    let said_of = |bytes: &[u8]| -> String {
        let text = String::from_utf8_lossy(bytes).replace('\t', " ");
        text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    };
    assert_eq!(said_of(&said.stdout), golden, "{}", said_of(&said.stderr));
}

#[test]
fn unsaved_data_is_never_called_a_hole() {
    let mount = mounted(64);
    let said = python(
        mount.directory.path(),
        "import os\n\
         fd=os.open('f',os.O_RDWR|os.O_CREAT); os.ftruncate(fd,1<<20); os.pwrite(fd,b'x'*4096,512<<10)\n\
         print(os.lseek(fd,0,os.SEEK_DATA) <= 512<<10, os.lseek(fd,512<<10,os.SEEK_HOLE) >= (512<<10)+4096)",
    );
    assert_eq!(said, "True True");
}

#[test]
fn set_id_bits_go_when_another_user_writes_or_truncates() {
    let mount = mounted(64);
    let said = python(
        mount.directory.path(),
        "import os\n\
         for n in 'abc':\n  open(n,'w').write('x'*100); os.chmod(n,0o6777)\n\
         os.chmod('.',0o777); os.setuid(65534)\n\
         open('a','r+').write('y'); os.truncate('b',5); os.posix_fallocate(os.open('c',os.O_WRONLY),0,5000)\n\
         print([oct(os.stat(n).st_mode&0o7777) for n in 'abc'])",
    );
    assert_eq!(said, "['0o777', '0o777', '0o777']");
}

#[test]
fn copy_file_range_copies_what_is_not_saved_yet() {
    let mount = mounted(64);
    let said = python(
        mount.directory.path(),
        "import os\n\
         a=os.open('a',os.O_RDWR|os.O_CREAT); b=os.open('b',os.O_RDWR|os.O_CREAT); os.write(a,b'abc'*1000)\n\
         n=os.copy_file_range(a,b,3000,0,0); print(n, os.pread(b,4000,0)==b'abc'*1000)",
    );
    assert_eq!(said, "3000 True");
}

#[test]
fn a_file_system_opened_read_only_refuses_changes() {
    let device = MemoryDevice::formatted(16);
    let mount = mounted_from(device);
    fs::write(mount.path("f"), b"kept").unwrap();
    let mount = mount.remounted();
    rustix::mount::mount_remount(mount.directory.path(), rustix::mount::MountFlags::RDONLY, "").unwrap();
    assert_eq!(
        fs::write(mount.path("g"), b"").unwrap_err().kind(),
        ErrorKind::ReadOnlyFilesystem
    );
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"kept");
}
