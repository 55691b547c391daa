//! The kernel's requests, answered by `fs`. Decides who does a request (see `pool`), and which requests the kernel need not send.
//!
//! Fewest requests per system call, since each costs two process switches:
//! - `open`, `opendir`, `create`, `flush`, `access` are answered ENOSYS, after which the kernel does without: it keeps an open file's
//!   inode referenced, so `forget` is the end of an unlinked file's life; it creates with `mknod`; it checks permissions itself.
//! - Names, attributes, link targets, directory listings and the absence of names stay valid for [`VALID`] in the kernel's caches:
//!   one mount at a time owns the volume, so nobody else changes them.
//! - Written data waits in the kernel's page cache; the kernel keeps size and times of regular files meanwhile and sends the times
//!   with `setattr` when it closes or syncs the file.

use super::convert::{errno, file_attr, file_type, no_entry, set_time, time};
use super::greeting::{Gate, HALT};
use super::pool::{Lane, Pool};
use super::requests::{Flows, Kind, Requests};
use crate::fs::{Caller, FileKind, FileSystem, FsError, SetAttr};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long the kernel may trust a name or attributes.
const VALID: Duration = Duration::from_secs(3600);
/// Bytes of the largest write or read request: what the kernel allows by default (`fs.fuse.max_pages_limit`).
const MAX_REQUEST: u32 = 1 << 20;
/// Background requests (read-ahead and write-back) that the kernel sends before it waits for answers.
pub(super) const MAX_BACKGROUND: u16 = 256;
/// Bytes that one `copy_file_range` request copies at most, so that none takes long; the caller asks again.
const MAX_COPY: u64 = 32 << 20;

/// What the event loops and the workers share.
pub(super) struct Shared {
    pub(super) fs: Arc<FileSystem>,
    pub(super) pool: Pool,
    pub(super) requests: Requests,
    pub(super) gate: Gate,
    pub(super) flows: Flows,
}

/// The handler that `fuser` calls.
pub(super) struct Adapter {
    pub(super) shared: Arc<Shared>,
    no_open: bool,
    no_opendir: bool,
}

/// A reply that can say no.
trait Fail: Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! fail {
    ($($reply:ty),*) => { $(impl Fail for $reply { fn fail(self, errno: Errno) { self.error(errno); } })* };
}
fail!(ReplyEntry, ReplyAttr, ReplyEmpty, ReplyData, ReplyWrite);

type Name = Box<[u8]>;

/// In a request's number: the kernel sends it again (`FUSE_UNIQUE_RESEND`).
const SENT_AGAIN: u64 = 1 << 63;

fn was_done<A>(_: &FileSystem, _: A, reply: ReplyEmpty) {
    reply.ok();
}

/// A name that was made is told as it is now.
fn was_made(kind: Kind, fs: &FileSystem, parent: u64, name: &[u8], reply: ReplyEntry) {
    answer_entry(kind, parent, reply, fs.lookup(parent, name));
}

fn owned(name: &OsStr) -> Name {
    name.as_bytes().into()
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        umask,
    }
}

impl Adapter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            no_open: false,
            no_opendir: false,
        }
    }

    fn fs(&self) -> &FileSystem {
        &self.shared.fs
    }

    fn count(&self, kind: Kind) {
        self.shared.requests.count(kind);
    }

    /// Does a request that may wait: here if another event loop is free, else in a worker.
    fn may_wait<A: Send + 'static, R: Fail>(
        &self,
        lane: Lane,
        kind: Kind,
        arguments: A,
        reply: R,
        run: fn(&Shared, A, R),
    ) {
        self.count(kind);
        if let Some(_inline) = self.shared.pool.try_inline() {
            return run(&self.shared, arguments, reply);
        }
        let shared = self.shared.clone();
        self.shared.pool.hand_over(
            lane,
            (arguments, reply),
            move |(arguments, reply)| run(&shared, arguments, reply),
            |(_, reply)| reply.fail(Errno::ENOMEM),
        );
    }

    /// The same for a request that does something once: should the daemon die between doing and answering it, the next one is sent it
    /// again, and answers as `again` does.
    fn once<A: Send + 'static, R: Fail>(
        &self,
        request: &Request,
        kind: Kind,
        arguments: A,
        reply: R,
        run: fn(&FileSystem, A, R),
        again: fn(&FileSystem, A, R),
    ) {
        let arguments = (request.unique().0, arguments, run, again);
        self.may_wait(
            Lane::Change,
            kind,
            arguments,
            reply,
            |Shared { fs, .. }, (id, a, run, again), reply| {
                let first = id & !SENT_AGAIN;
                if id != first && fs.has_done(first) {
                    again(fs, a, reply);
                    fs.answered(first);
                } else {
                    fs.request(first, || run(fs, a, reply));
                }
            },
        );
    }

    /// A request that the kernel shall not send again.
    fn declined(&self) -> Errno {
        self.count(Kind::Declined);
        Errno::ENOSYS
    }
}

fn answer_entry(kind: Kind, parent: u64, reply: ReplyEntry, result: Result<crate::fs::Attr, FsError>) {
    match result {
        Ok(attr) => reply.entry(&VALID, &file_attr(&attr), Generation(attr.generation)),
        Err(error) => reply.error(errno(kind.name(), parent, &error)),
    }
}

fn answer_empty(kind: Kind, ino: u64, reply: ReplyEmpty, result: Result<(), FsError>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(kind.name(), ino, &error)),
    }
}

fn answer_attr(kind: Kind, ino: u64, reply: ReplyAttr, result: Result<crate::fs::Attr, FsError>) {
    match result {
        Ok(attr) => reply.attr(&VALID, &file_attr(&attr)),
        Err(error) => reply.error(errno(kind.name(), ino, &error)),
    }
}

fn answer_xattr(ino: u64, size: u32, reply: ReplyXattr, result: Result<Vec<u8>, FsError>) {
    match result {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(length) if size == 0 => reply.size(length),
            Ok(length) if length <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
        Err(error) => reply.error(errno("xattr", ino, &error)),
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // One at a time: an older kernel that lacks one still gets the others.
        for wanted in [
            InitFlags::FUSE_WRITEBACK_CACHE,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
        ] {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::debug!(?missing, "the kernel does not offer a FUSE capability");
            }
        }
        self.no_open = config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_ok();
        self.no_opendir = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_ok();
        // Both are within what fuser allows, and it keeps its own values if not.
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Kind::Lookup);
        match self.fs().lookup(parent.0, name.as_bytes()) {
            // The kernel remembers that there is no such name until it makes one.
            Err(FsError::Posix(libc::ENOENT)) => reply.entry(&VALID, &no_entry(), Generation(0)),
            result => answer_entry(Kind::Lookup, parent.0, reply, result),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        if ino.0 == HALT {
            return self.shared.gate.pass();
        }
        self.count(Kind::Forget);
        // The last reference to an unlinked file frees its blocks, which may wait.
        if let Some(_inline) = self.shared.pool.try_inline() {
            return self.fs().forget(ino.0, nlookup);
        }
        let fs = self.shared.fs.clone();
        let run = move |()| fs.forget(ino.0, nlookup);
        let refuse = |()| self.fs().forget(ino.0, nlookup);
        self.shared.pool.hand_over(Lane::Change, (), run, refuse);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Kind::Getattr);
        answer_attr(Kind::Getattr, ino.0, reply, self.fs().getattr(ino.0));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(time),
            // The kernel says this with a bit that fuser drops; it is set for whoever lacks CAP_FSETID.
            kill_suid: size.is_some() && request.uid() != 0,
        };
        let lane = if size.is_some() { Lane::Write } else { Lane::Change };
        self.may_wait(
            lane,
            Kind::Setattr,
            (ino.0, set),
            reply,
            |Shared { fs, .. }, (ino, set), reply| {
                answer_attr(Kind::Setattr, ino, reply, fs.setattr(ino, &set));
            },
        );
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Kind::Readlink);
        match self.fs().readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno("readlink", ino.0, &error)),
        }
    }

    // Whether the umask counts depends on the directory's default ACL (FUSE_DONT_MASK).
    fn mknod(&self, r: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let arguments = (caller(r, umask), parent.0, owned(name), mode, rdev);
        self.once(
            r,
            Kind::Mknod,
            arguments,
            reply,
            |fs, a, reply| {
                answer_entry(Kind::Mknod, a.1, reply, fs.mknod(&a.0, a.1, &a.2, a.3, a.4));
            },
            |fs, a, reply| {
                was_made(Kind::Mknod, fs, a.1, &a.2, reply);
            },
        );
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let arguments = (caller(request, umask), parent.0, owned(name), mode);
        self.once(
            request,
            Kind::Mkdir,
            arguments,
            reply,
            |fs, a, reply| {
                answer_entry(Kind::Mkdir, a.1, reply, fs.mkdir(&a.0, a.1, &a.2, a.3));
            },
            |fs, a, reply| {
                was_made(Kind::Mkdir, fs, a.1, &a.2, reply);
            },
        );
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let arguments = (caller(request, 0), parent.0, owned(name), owned(target.as_os_str()));
        self.once(
            request,
            Kind::Symlink,
            arguments,
            reply,
            |fs, a, reply| {
                answer_entry(Kind::Symlink, a.1, reply, fs.symlink(&a.0, a.1, &a.2, &a.3));
            },
            |fs, a, reply| {
                was_made(Kind::Symlink, fs, a.1, &a.2, reply);
            },
        );
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let arguments = (ino.0, parent.0, owned(name));
        self.once(
            request,
            Kind::Link,
            arguments,
            reply,
            |fs, (ino, parent, name), reply| {
                answer_entry(Kind::Link, ino, reply, fs.link(ino, parent, &name));
            },
            |fs, a, reply| {
                was_made(Kind::Link, fs, a.1, &a.2, reply);
            },
        );
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let arguments = (parent.0, owned(name));
        self.once(
            request,
            Kind::Unlink,
            arguments,
            reply,
            |fs, (parent, name), reply| {
                answer_empty(Kind::Unlink, parent, reply, fs.unlink(parent, &name));
            },
            was_done,
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let arguments = (parent.0, owned(name));
        self.once(
            request,
            Kind::Rmdir,
            arguments,
            reply,
            |fs, (parent, name), reply| {
                answer_empty(Kind::Rmdir, parent, reply, fs.rmdir(parent, &name));
            },
            was_done,
        );
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let arguments = (parent.0, owned(name), new_parent.0, owned(new_name), flags.bits());
        self.once(
            request,
            Kind::Rename,
            arguments,
            reply,
            |fs, a, reply| {
                answer_empty(Kind::Rename, a.0, reply, fs.rename(a.0, &a.1, a.2, &a.3, a.4));
            },
            was_done,
        );
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            return reply.error(self.declined());
        }
        self.count(Kind::Open);
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            return reply.error(self.declined());
        }
        self.count(Kind::Open);
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
        );
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        // With `mknod` and no `open`, a file is made by one request, and its close sends none.
        reply.error(self.declined());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let arguments = (Instant::now(), ino.0, offset, size);
        self.may_wait(
            Lane::Read,
            Kind::Read,
            arguments,
            reply,
            |Shared { fs, flows, .. }, (since, ino, offset, size), reply| {
                let result = fs.read(ino, offset, size);
                flows.read.done(since, result.as_ref().map(|data| data.len()));
                match result {
                    Ok(data) => reply.data(&data),
                    Err(error) => reply.error(errno("read", ino, &error)),
                }
            },
        );
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        self.count(Kind::Write);
        // Not `may_wait`: the event loop's buffer is copied only when a worker gets the request.
        let since = Instant::now();
        if let Some(_inline) = self.shared.pool.try_inline() {
            return write(&self.shared, since, ino.0, offset, data, kill, reply);
        }
        let shared = self.shared.clone();
        self.shared.pool.hand_over(
            Lane::Write,
            (data.to_vec(), reply),
            move |(data, reply)| write(&shared, since, ino.0, offset, &data, kill, reply),
            |(_, reply)| reply.error(Errno::ENOMEM),
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(self.declined());
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(self.declined());
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let arguments = (Instant::now(), ino.0, data_only);
        self.may_wait(
            Lane::Write,
            Kind::Fsync,
            arguments,
            reply,
            |Shared { fs, flows, .. }, (since, ino, data_only), reply| {
                let result = fs.fsync(ino, data_only);
                flows.sync.done(since, result.as_ref().map(|()| 0));
                answer_empty(Kind::Fsync, ino, reply, result);
            },
        );
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        // A directory's data are its names, so there is nothing to leave out.
        self.fsync(request, ino, handle, false, reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.count(Kind::Readdir);
        let result = self.fs().readdir(ino.0, offset, &mut |entry| {
            let name = OsStr::from_bytes(entry.name);
            reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno("readdir", ino.0, &error)),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.count(Kind::Readdir);
        let result = self.fs().readdir_plus(ino.0, offset, &mut |entry, attr| {
            let name = OsStr::from_bytes(entry.name);
            let generation = Generation(attr.generation);
            reply.add(
                INodeNo(entry.ino),
                entry.cookie,
                name,
                &VALID,
                &file_attr(attr),
                generation,
            )
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno("readdirplus", ino.0, &error)),
        }
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.count(Kind::Statfs);
        match self.fs().statfs() {
            Ok(s) => reply.statfs(s.blocks, s.free, s.free, s.files, s.files_free, 4096, 255, 4096),
            Err(error) => reply.error(errno("statfs", ino.0, &error)),
        }
    }

    fn setxattr(&self, r: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        let arguments = (caller(r, 0), ino.0, owned(name), value.to_vec(), flags);
        self.once(
            r,
            Kind::Setxattr,
            arguments,
            reply,
            |fs, a, reply| {
                answer_empty(Kind::Setxattr, a.1, reply, fs.setxattr(&a.0, a.1, &a.2, &a.3, a.4));
            },
            was_done,
        );
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Kind::Getxattr);
        answer_xattr(ino.0, size, reply, self.fs().getxattr(ino.0, name.as_bytes()));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Kind::Listxattr);
        let mut names = self.fs().listxattr(ino.0);
        if let Ok(list) = &mut names
            && request.uid() != 0
        {
            // As on other file systems, only root sees trusted attributes.
            let shown = list
                .split_inclusive(|b| *b == 0)
                .filter(|n| !n.starts_with(b"trusted."));
            *list = shown.flatten().copied().collect();
        }
        answer_xattr(ino.0, size, reply, names);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.once(
            request,
            Kind::Removexattr,
            (ino.0, owned(name)),
            reply,
            |fs, (ino, name), reply| {
                answer_empty(Kind::Removexattr, ino, reply, fs.removexattr(ino, &name));
            },
            was_done,
        );
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let arguments = (ino.0, offset, length, mode, request.uid());
        self.may_wait(
            Lane::Write,
            Kind::Fallocate,
            arguments,
            reply,
            |Shared { fs, .. }, a, reply| {
                let (ino, offset, length, mode, uid) = a;
                let done = fs.fallocate(ino, mode, offset, length);
                let done = done.and_then(|()| if uid == 0 { Ok(()) } else { clear_set_id(fs, ino) });
                answer_empty(Kind::Fallocate, ino, reply, done);
            },
        );
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        // The kernel does not write dirty pages back before it asks, so the answer could call unsaved data a hole.
        reply.error(self.declined());
    }

    fn copy_file_range(
        &self,
        _: &Request,
        from: INodeNo,
        _: FileHandle,
        offset_in: u64,
        to: INodeNo,
        _: FileHandle,
        offset_out: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let arguments = (from.0, offset_in, to.0, offset_out, length.min(MAX_COPY));
        self.may_wait(
            Lane::Write,
            Kind::Copy,
            arguments,
            reply,
            |Shared { fs, .. }, a, reply| {
                match fs.copy_range(a.0, a.1, a.2, a.3, a.4) {
                    // No more than MAX_COPY, so it fits.
                    Ok(copied) => reply.written(copied as u32),
                    Err(error) => reply.error(errno("copy", a.2, &error)),
                }
            },
        );
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Kind::Declined);
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(self.declined());
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(self.declined());
    }
}

fn write(shared: &Shared, since: Instant, ino: u64, offset: u64, data: &[u8], kill_suid: bool, reply: ReplyWrite) {
    let result = shared.fs.write(ino, offset, data, kill_suid);
    let written = result.as_ref().map(|written| *written as usize);
    shared.flows.write.done(since, written);
    match result {
        Ok(written) => reply.written(written),
        Err(error) => reply.error(errno("write", ino, &error)),
    }
}

/// Takes the set-id bits from a file that an ordinary user has changed.
fn clear_set_id(fs: &FileSystem, ino: u64) -> Result<(), FsError> {
    let attr = fs.getattr(ino)?;
    if attr.kind == FileKind::File && u32::from(attr.mode) & (libc::S_ISUID | libc::S_ISGID) != 0 {
        let set = SetAttr {
            kill_suid: true,
            ..SetAttr::default()
        };
        fs.setattr(ino, &set)?;
    }
    Ok(())
}
