//! The fuzzer's entry: gives inputs to the target that `FUZZ_TARGET` names. With `FUZZ_SEEDS=DIRECTORY` it writes the target's seeds there and ends.
//!
//! An input is a find if it panics, takes too long (libFuzzer's `-timeout`), takes too much memory in all (`-rss_limit_mb`), or at once ([`MOST`]).
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::{abort, exit};
use std::sync::LazyLock;
use storageos::fuzzing::{Target, target};

/// More is never asked for at once on behalf of an input: the longest frame has 9 MiB, a memory log 16, a database's cache 32.
const MOST: usize = 256 << 20;

/// The system's allocator, which tells of absurd wishes. libFuzzer's own limit works with sanitizers alone.
struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn check(size: usize) {
    if size > MOST {
        eprintln!("{size} bytes were asked for at once\n{}", Backtrace::force_capture());
        abort();
    }
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

thread_local! {
    /// The last panic of this thread, which may yet be caught where it is expected.
    static PANIC: RefCell<Option<(String, Backtrace)>> = const { RefCell::new(None) };
}

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some(target) = target(&name) else {
        eprintln!("FUZZ_TARGET={name}: there is no such target");
        exit(2);
    };
    if let Some(directory) = std::env::var_os("FUZZ_SEEDS") {
        for (number, seed) in target.seeds().iter().enumerate() {
            let path = std::path::Path::new(&directory).join(format!("seed-{number}"));
            if let Err(error) = std::fs::write(&path, seed) {
                eprintln!("{}: {error}", path.display());
                exit(2);
            }
        }
        exit(0);
    }
    let fuzzer = std::thread::current().id();
    // In place of libFuzzer's, for which every panic is a find.
    set_hook(Box::new(move |panic| {
        let trace = Backtrace::force_capture();
        // redb's are expected on damaged databases, and caught (`fs::store`); nobody catches those of other threads.
        let redb = panic.location().is_some_and(|at| at.file().contains("/redb-"));
        if !redb && std::thread::current().id() != fuzzer {
            eprintln!("{panic}\n{trace}");
            abort();
        }
        PANIC.set(Some((panic.to_string(), trace)));
    }));
    target
});

fuzz_target!(init: { LazyLock::force(&TARGET); }, |input: &[u8]| -> Corpus {
    match catch_unwind(AssertUnwindSafe(|| TARGET.run(input))) {
        Ok(Some(_)) => Corpus::Keep,
        Ok(None) => Corpus::Reject,
        Err(_) => {
            if let Some((panic, trace)) = PANIC.take() {
                eprintln!("{panic}\n{trace}");
            }
            abort();
        }
    }
});
