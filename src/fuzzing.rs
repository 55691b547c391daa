//! Hostile bytes for every decoder of bytes that come from the network, disks, the control store, or people.
//!
//! [`TARGETS`] is the only list of them: the fuzzers in `tests/fuzz` and the test below, which plays the corpus in git, both go by it. An input's
//! first byte chooses the decoder, the rest is for it. A decoder must end, soon, without a panic and without taking memory that the input
//! does not account for; where there is an encoder, what was decoded must come back the same. It says whether it understood the input: each
//! must understand a seed of its own, or it would test nothing but its first check.
//!
//! Formats with checksums are given inputs whose checksum is made right, for the fuzzer does not find one by itself.
//!
//! Only in tests and with the feature `fuzzing`; the decoders are beside the code that they exercise, in files of this name.

use crate::{api, block, cli, cluster, docker, fdstore, fs, fuse, node, replication, rpc, trust, volume};

/// A group of decoders that one fuzzer works on.
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Chosen by an input's first byte. New ones go to the end, or the corpus loses its meaning.
    pub decoders: &'static [Decoder],
}

/// Something that reads bytes which may be anything.
pub struct Decoder {
    /// What it reads.
    pub name: &'static str,
    run: fn(&[u8]) -> bool,
    seeds: fn() -> Vec<Vec<u8>>,
}

const fn of(name: &'static str, run: fn(&[u8]) -> bool, seeds: fn() -> Vec<Vec<u8>>) -> Decoder {
    Decoder { name, run, seeds }
}

/// All of them.
pub static TARGETS: &[Target] = &[
    Target {
        name: "wire",
        decoders: &[
            of("stream of frames", rpc::fuzzing::stream, rpc::fuzzing::stream_seeds),
            of("hello", rpc::fuzzing::hello, rpc::fuzzing::hello_seeds),
            of("sealed hello", rpc::fuzzing::sealed_hello, rpc::fuzzing::hello_seeds),
            of("small message", rpc::fuzzing::small, rpc::fuzzing::small_seeds),
            of(
                "data request",
                replication::fuzzing::request,
                replication::fuzzing::request_seeds,
            ),
            of(
                "data answer",
                replication::fuzzing::answer,
                replication::fuzzing::answer_seeds,
            ),
            of(
                "control request",
                cluster::fuzzing::request,
                cluster::fuzzing::request_seeds,
            ),
            of(
                "control answer",
                cluster::fuzzing::answer,
                cluster::fuzzing::answer_seeds,
            ),
            of("raft message", cluster::fuzzing::raft, cluster::fuzzing::raft_seeds),
            of("node request", node::fuzzing::request, node::fuzzing::request_seeds),
            of("node answer", node::fuzzing::answer, node::fuzzing::answer_seeds),
            of("enrol", node::fuzzing::enrol, node::fuzzing::enrol_seeds),
            of(
                "certificate",
                rpc::fuzzing::certificate,
                rpc::fuzzing::certificate_seeds,
            ),
        ],
    },
    Target {
        name: "words",
        decoders: &[
            of("API body", api::fuzzing::body, api::fuzzing::body_seeds),
            of("API query", api::fuzzing::query, api::fuzzing::query_seeds),
            of("labels", volume::fuzzing::labels, volume::fuzzing::labels_seeds),
            of(
                "name, size, selector",
                volume::fuzzing::text,
                volume::fuzzing::text_seeds,
            ),
            of("time, node of etcd", cli::fuzzing::text, cli::fuzzing::text_seeds),
            of("token", trust::fuzzing::token, trust::fuzzing::token_seeds),
            of(
                "node.pem",
                trust::fuzzing::credentials,
                trust::fuzzing::credentials_seeds,
            ),
            of(
                "Docker request",
                docker::fuzzing::request,
                docker::fuzzing::request_seeds,
            ),
            of("docker.json", docker::fuzzing::ledger, docker::fuzzing::ledger_seeds),
            of(
                "descriptor store",
                fdstore::fuzzing::packet,
                fdstore::fuzzing::packet_seeds,
            ),
            of("mount helper", node::fuzzing::helper, node::fuzzing::helper_seeds),
            of("mount table, utab", node::fuzzing::tables, node::fuzzing::tables_seeds),
            of("mount options", node::fuzzing::options, node::fuzzing::options_seeds),
            of("files of a node", node::fuzzing::files, node::fuzzing::files_seeds),
            of("greeting", fuse::fuzzing::greeting, fuse::fuzzing::greeting_seeds),
        ],
    },
    Target {
        name: "records",
        decoders: &[
            of("key", cluster::fuzzing::key, cluster::fuzzing::key_seeds),
            of("record", cluster::fuzzing::record, cluster::fuzzing::record_seeds),
            of(
                "plan over records",
                cluster::fuzzing::plan,
                cluster::fuzzing::plan_seeds,
            ),
            of("export", cluster::fuzzing::export, cluster::fuzzing::export_seeds),
            of("etcd's answers", cluster::fuzzing::etcd, cluster::fuzzing::etcd_seeds),
            of("commands", cluster::fuzzing::commands, cluster::fuzzing::commands_seeds),
            of(
                "raft.redb's values",
                cluster::fuzzing::values,
                cluster::fuzzing::values_seeds,
            ),
        ],
    },
    Target {
        name: "rows",
        decoders: &[
            of("superblock", fs::fuzzing::superblock, fs::fuzzing::superblock_seeds),
            of("length record", fs::fuzzing::length, fs::fuzzing::length_seeds),
            of("row", fs::fuzzing::row, fs::fuzzing::row_seeds),
            of("intent log", fs::fuzzing::log, fs::fuzzing::log_seeds),
            of("memory log", fs::fuzzing::memory, fs::fuzzing::memory_seeds),
            of("ACL", fs::fuzzing::acl, fs::fuzzing::acl_seeds),
            of("copy's header", block::fuzzing::header, block::fuzzing::header_seeds),
            of("activity log", block::fuzzing::activity, block::fuzzing::activity_seeds),
        ],
    },
    Target {
        name: "volume",
        decoders: &[
            of(
                "damaged blocks",
                fs::fuzzing::volume::blocks,
                fs::fuzzing::volume::blocks_seeds,
            ),
            of("wrong rows", fs::fuzzing::volume::rows, fs::fuzzing::volume::rows_seeds),
        ],
    },
    Target {
        name: "copy",
        decoders: &[of("damaged copy", block::fuzzing::copy, block::fuzzing::copy_seeds)],
    },
    Target {
        name: "replica",
        decoders: &[of(
            "requests",
            replication::fuzzing::host,
            replication::fuzzing::host_seeds,
        )],
    },
];

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// Gives an input to its decoder; `None`: there is no such decoder. Otherwise, whether the input was understood.
    #[must_use]
    pub fn run(&self, input: &[u8]) -> Option<bool> {
        let (number, input) = input.split_first()?;
        Some((self.decoders.get(usize::from(*number))?.run)(input))
    }

    /// Inputs made from real values: they follow the formats by themselves.
    #[must_use]
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        let numbered = |(number, decoder): (usize, &Decoder)| {
            let seeds = (decoder.seeds)().into_iter();
            // There are far fewer decoders than 256.
            seeds.map(move |seed| [&[number as u8], &seed[..]].concat())
        };
        self.decoders.iter().enumerate().flat_map(numbered).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::{Path, PathBuf};

    fn corpus(target: &Target) -> Vec<PathBuf> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fuzz/corpus")
            .join(target.name);
        let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Plays a target's corpus: every input that the fuzzers found worth keeping, those that were bugs among them.
    fn play(name: &str) {
        let target = target(name).unwrap();
        let files = corpus(target);
        assert!(!files.is_empty(), "target {name} has no corpus: see CONTRIBUTING.md");
        for file in files {
            let input = std::fs::read(&file).unwrap();
            let played = catch_unwind(AssertUnwindSafe(|| target.run(&input)));
            assert!(played.is_ok(), "{} is a bug", file.display());
        }
    }

    macro_rules! play {
        ($($name:ident)*) => {
            $(#[test]
            fn $name() {
                play(stringify!($name));
            })*

            #[test]
            fn every_target_is_played() {
                let played = BTreeSet::from([$(stringify!($name)),*]);
                let targets: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
                assert_eq!(played, targets);
            }
        };
    }

    // A test each, so that they run at the same time.
    play!(wire words records rows volume copy replica);

    #[test]
    fn every_decoder_understands_a_seed_of_its_own() {
        for target in TARGETS {
            for (number, decoder) in target.decoders.iter().enumerate() {
                let understood = (decoder.seeds)().iter().filter(|seed| (decoder.run)(seed)).count();
                assert!(understood > 0, "{}, {number}: {}", target.name, decoder.name);
            }
        }
    }

    #[test]
    fn the_directories_of_corpora_are_those_of_targets() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for entry in std::fs::read_dir(directory).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(target(name.to_str().unwrap()).is_some(), "{name:?} is no target's");
        }
    }
}
