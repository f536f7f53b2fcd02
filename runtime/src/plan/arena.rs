//! Offsets: persistent buffers one after another, temporaries by lifetime. Buffers that are alive together never overlap.

use super::{Buffer, Memory, Segment};

/// Alignment of every buffer: GPU bindings need 256 bytes.
pub const ALIGNMENT: usize = 256;

/// Rounds up to the alignment.
pub fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Gives each temporary an offset from 0 (largest first, lowest free gap among those alive with it) and returns their extent.
pub fn place_temporaries(buffers: &mut [Buffer], memory: Memory) -> usize {
    let mut order: Vec<usize> = (0..buffers.len()).filter(|&i| buffers[i].segment == Segment::Temporary).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].bytes()), buffers[i].life, i));
    let mut placed: Vec<usize> = Vec::new();
    let mut extent = 0;
    for i in order {
        let (birth, death) = buffers[i].life;
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .map(|&j| &buffers[j])
            .filter(|b| b.life.0 <= death && birth <= b.life.1)
            .map(|b| (b.offset, b.offset + align(b.bytes())))
            .collect();
        taken.sort_unstable();
        let size = align(buffers[i].bytes());
        let mut at = 0;
        for (from, to) in taken {
            if at + size <= from {
                break;
            }
            at = memory.next(at.max(to), size);
        }
        buffers[i].offset = at;
        extent = extent.max(at + size);
        placed.push(i);
    }
    extent
}

/// Two temporaries that are alive together and overlap, if there are any: the planner's own check.
pub fn overlap(buffers: &[Buffer]) -> Option<(usize, usize)> {
    let temporary = |i: &usize| buffers[*i].segment == Segment::Temporary;
    let ids: Vec<usize> = (0..buffers.len()).filter(temporary).collect();
    for (k, &i) in ids.iter().enumerate() {
        for &j in &ids[k + 1..] {
            let (a, b) = (&buffers[i], &buffers[j]);
            let together = a.life.0 <= b.life.1 && b.life.0 <= a.life.1;
            let touch = a.offset < b.offset + b.bytes() && b.offset < a.offset + a.bytes();
            if together && touch {
                return Some((i, j));
            }
        }
    }
    None
}
