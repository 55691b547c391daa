//! The intent log: rows that an fsync made durable since the database's last checkpoint.
//!
//! A record is one contiguous write of whole blocks: a head, the rows, padding. It belongs to a generation, which the database names,
//! and to a place in its sequence. Replay reads records from the start of the area until the first that is not the next one: a torn
//! or old record ends it. Putting the same rows again is harmless. Generations take the two halves of the area in turn: while a
//! checkpoint of one runs, the next is already being written.

use super::layout::{LOG_HALF, LOG_START};
use crate::block::{BLOCK_SIZE, BlockDevice, DeviceError};

const MAGIC: &[u8; 8] = b"STOSILOG";
/// Magic, generation, sequence, bytes of the body, rows, checksum.
const HEAD: usize = 72;
/// Longest record, in bytes; more changes than that make a checkpoint instead.
pub(super) const RECORD_MAX: usize = 4 << 20;

/// A change of a row: its key, and its value or that it is gone.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

/// Bytes that a change takes in a record.
pub(super) fn change_size(key: &[u8], value: Option<&[u8]>) -> usize {
    8 + key.len() + value.map_or(0, <[u8]>::len)
}

/// Appends a change as records have it.
pub(super) fn encode_change(out: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    // Keys and values are bounded far below 2^31 (names 255, targets 4095, attributes 64 KiB).
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(&value.map_or(u32::MAX, |v| v.len() as u32).to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value.unwrap_or_default());
}

/// A record of whole blocks.
pub(super) fn encode(generation: u64, sequence: u64, changes: &[Change]) -> Vec<u8> {
    let body: usize = changes.iter().map(|(k, v)| change_size(k, v.as_deref())).sum();
    let mut out = Vec::with_capacity((HEAD + body).next_multiple_of(BLOCK_SIZE));
    out.extend_from_slice(MAGIC);
    for number in [generation, sequence, body as u64, changes.len() as u64] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.resize(HEAD, 0);
    for (key, value) in changes {
        encode_change(&mut out, key, value.as_deref());
    }
    let sum = checksum(&out);
    out[40..HEAD].copy_from_slice(&sum);
    out.resize(out.len().next_multiple_of(BLOCK_SIZE), 0);
    out
}

fn checksum(record: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&record[..40]);
    hasher.update(&record[HEAD..]);
    *hasher.finalize().as_bytes()
}

/// The number at a place.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The length in bytes of the body of a record that begins with this block, if it is the wanted one.
fn body_length(head: &[u8], generation: u64, sequence: u64) -> Option<usize> {
    let wanted = head.get(..8)? == MAGIC && word(head, 8)? == generation && word(head, 16)? == sequence;
    let body = usize::try_from(word(head, 24)?).ok()?;
    (wanted && body <= RECORD_MAX).then_some(body)
}

/// The changes of a whole record.
fn decode(record: &[u8], body: usize) -> Option<Vec<Change>> {
    let record = record.get(..HEAD + body)?;
    if record[40..HEAD] != checksum(record) {
        return None;
    }
    decode_changes(&record[HEAD..], word(record, 32)?)
}

/// So many changes, as [`encode_change`] writes them.
pub(super) fn decode_changes(bytes: &[u8], count: u64) -> Option<Vec<Change>> {
    let (mut at, mut changes) = (0, Vec::new());
    let length = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    for _ in 0..count {
        let (key, value) = (length(at)? as usize, length(at + 4)?);
        at += 8;
        let key_bytes = bytes.get(at..at.checked_add(key)?)?.to_vec();
        at += key;
        let value = if value == u32::MAX {
            None
        } else {
            let value_bytes = bytes.get(at..at.checked_add(value as usize)?)?.to_vec();
            at += value as usize;
            Some(value_bytes)
        };
        changes.push((key_bytes, value));
    }
    Some(changes)
}

/// A log whose first record's checksum is made right.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn sealed(log: &[u8]) -> Vec<u8> {
    let mut sealed = log.to_vec();
    let body = word(log, 24).and_then(|body| usize::try_from(body).ok());
    if let Some(end) = body
        .and_then(|body| body.checked_add(HEAD))
        .filter(|end| *end <= log.len())
    {
        let sum = checksum(&sealed[..end]);
        sealed[40..HEAD].copy_from_slice(&sum);
    }
    sealed
}

/// First block of a generation's half of the area.
pub(super) fn half(generation: u64) -> u64 {
    LOG_START + generation % 2 * LOG_HALF
}

/// Reads a generation's records in order and hands over their changes; returns how many there were.
pub(super) fn replay<E: From<DeviceError>>(
    device: &dyn BlockDevice,
    generation: u64,
    mut apply: impl FnMut(Change) -> Result<(), E>,
) -> Result<u64, E> {
    let (start, mut sequence, mut at) = (half(generation), 0, 0);
    let mut head = vec![0; BLOCK_SIZE];
    while at < LOG_HALF {
        device.read(start + at, &mut head)?;
        let Some(body) = body_length(&head, generation, sequence) else {
            break;
        };
        let blocks = (HEAD + body).div_ceil(BLOCK_SIZE) as u64;
        if at + blocks > LOG_HALF {
            break;
        }
        let mut record = vec![0; blocks as usize * BLOCK_SIZE];
        device.read(start + at, &mut record)?;
        let Some(changes) = decode(&record, body) else {
            break;
        };
        for change in changes {
            apply(change)?;
        }
        sequence += 1;
        at += blocks;
    }
    Ok(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_its_documented_bytes() {
        let record = encode(2, 3, &[(b"Iab".to_vec(), Some(vec![9])), (b"X".to_vec(), None)]);
        assert_eq!(record.len(), BLOCK_SIZE);
        assert_eq!(&record[..24], b"STOSILOG\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
        assert_eq!(&record[24..40], b"\x15\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0");
        assert_eq!(
            &record[72..93],
            b"\x03\0\0\0\x01\0\0\0Iab\x09\x01\0\0\0\xff\xff\xff\xffX"
        );
        assert_eq!(record[40..72], checksum(&record[..93]));
        assert_eq!(body_length(&record, 2, 3), Some(21));
        assert_eq!(body_length(&record, 2, 4), None);
        assert_eq!(decode(&record, 21).unwrap().len(), 2);
        for at in 0..93 {
            let mut bad = record.clone();
            bad[at] ^= 1;
            let decoded = body_length(&bad, 2, 3).and_then(|body| decode(&bad, body));
            assert_eq!(decoded, None, "byte {at}");
        }
    }
}
