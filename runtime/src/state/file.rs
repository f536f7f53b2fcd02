//! The bytes of a state file: safetensors with sorted names, a checksum of each tensor and one of the header.
//!
//! `u64 header length · header (JSON, padded with spaces to 8 bytes) · elements, little-endian`. Eight-byte types come before
//! four-byte ones, so every tensor is aligned; within a size, names are sorted. The header's `__metadata__` holds the state's
//! text values in sorted order, among them
//!
//! - `kiln.checksum`: XXH3-64 of the header with these 16 digits as zeros,
//! - `kiln.checksums`: XXH3-64 of each tensor's bytes, in file order,
//! - `kiln.format` and `kiln.version`.
//!
//! A loaded header must be, byte for byte, the one that saving its content gives: what the checksums do not cover cannot exist.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use safetensors::tensor::Metadata;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{Place, State, StateError, Storage, TensorData, Values, durable};

/// Version of the format that this Kiln writes and reads.
const FORMAT: u32 = 1;
/// A tensor takes about 150 bytes of header: room for 100,000 of them, and the most that a hostile file makes us read at once.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Longest name of a tensor or a text value's key.
const MAX_NAME_BYTES: usize = 1024;
/// Elements are converted in pieces of this many bytes.
const PIECE_BYTES: usize = 1 << 16;
/// Bytes of the header's length.
const LENGTH_BYTES: u64 = 8;

const CHECKSUM: &str = "kiln.checksum";
const CHECKSUMS: &str = "kiln.checksums";
const KILN_FORMAT: &str = "kiln.format";
const KILN_VERSION: &str = "kiln.version";
const RESERVED: &str = "kiln.";

/// One tensor of the header.
struct Entry<'a> {
    name: &'a str,
    storage: Storage,
    shape: &'a [usize],
}

pub(super) fn save(state: &State<'_>, path: &Path) -> Result<(), StateError> {
    check_names(state)?;
    let mut tensors: Vec<(&String, &TensorData<'_>)> = state.tensors.iter().collect();
    tensors.sort_by_key(|(name, t)| file_order(t.values.storage(), name));
    let entries: Vec<Entry<'_>> =
        tensors.iter().map(|(name, t)| Entry { name, storage: t.values.storage(), shape: &t.shape }).collect();

    let mut checksums = Vec::with_capacity(tensors.len());
    for (_, tensor) in &tensors {
        let mut hash = Xxh3::new();
        for_each_piece(&tensor.values, |bytes| {
            hash.update(bytes);
            Ok(())
        })
        .map_err(|source| StateError::Io { path: path.to_owned(), action: "write", source })?;
        checksums.push(format!("{:016x}", hash.digest()));
    }
    let mut meta = state.meta.clone();
    meta.insert(CHECKSUMS.into(), checksums.join(" "));
    meta.insert(KILN_FORMAT.into(), FORMAT.to_string());
    meta.insert(KILN_VERSION.into(), env!("CARGO_PKG_VERSION").into());
    let header = header_with_checksum(&mut meta, &entries);

    durable::replace(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors.iter().try_for_each(|(_, tensor)| for_each_piece(&tensor.values, |bytes| file.write_all(bytes)))
    })
    .map_err(|source| StateError::Io { path: path.to_owned(), action: "write", source })
}

pub(super) fn load(path: &Path) -> Result<State<'static>, StateError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => StateError::Missing { path: path.to_owned() },
        _ => StateError::Io { path: path.to_owned(), action: "read", source },
    };
    let mut file = File::open(path).map_err(failed)?;
    let file_bytes = file.metadata().map_err(failed)?.len();
    let header = read_header(&mut file, file_bytes, path)?;
    let Header { metadata, mut meta, checksums } = parse_header(&header, path)?;
    let payload_bytes = file_bytes - LENGTH_BYTES - header.len() as u64;
    if metadata.data_len() as u64 != payload_bytes {
        let detail = format!("it announces {} bytes of tensors, the file has {payload_bytes}", metadata.data_len());
        return Err(damaged_header(path, detail));
    }

    let names = sorted_names(&metadata, path)?;
    let mut offset = LENGTH_BYTES + header.len() as u64;
    let mut tensors = BTreeMap::new();
    for ((name, storage, shape), checksum) in names.into_iter().zip(&checksums) {
        let elements: usize = shape.iter().product(); // cannot overflow: the header's offsets were checked against it
        let (values, found) = read_values(&mut file, storage, elements).map_err(failed)?;
        if found != *checksum {
            return Err(StateError::Damaged {
                path: path.to_owned(),
                offset,
                place: Place::Tensor(name),
                detail: format!("its checksum is {found:016x}, it was saved with {checksum:016x}"),
            });
        }
        offset += (elements * storage.bytes()) as u64;
        tensors.insert(name, TensorData { shape, values });
    }
    meta.retain(|key, _| !key.starts_with(RESERVED));
    Ok(State { tensors, meta })
}

fn check_names(state: &State<'_>) -> Result<(), StateError> {
    let refuse = |name: &str, why| Err(StateError::Name { name: name.chars().take(100).collect(), why });
    for name in state.tensors.keys().chain(state.meta.keys()) {
        if name.is_empty() || name == "__metadata__" {
            return refuse(name, "a name must not be empty nor `__metadata__`");
        }
        if name.len() > MAX_NAME_BYTES {
            return refuse(name, "a name must not exceed 1024 bytes");
        }
    }
    if let Some(key) = state.meta.keys().find(|k| k.starts_with(RESERVED)) {
        return refuse(key, "keys that start with `kiln.` are the format's own");
    }
    for (name, tensor) in &state.tensors {
        let elements = tensor.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        if elements != Some(tensor.values.len()) {
            let (shape, values) = (tensor.shape.clone(), tensor.values.len());
            return Err(StateError::Length { name: name.clone(), shape, values });
        }
    }
    Ok(())
}

/// Eight-byte types first, then by name.
fn file_order(storage: Storage, name: &str) -> (std::cmp::Reverse<usize>, String) {
    (std::cmp::Reverse(storage.bytes()), name.to_owned())
}

/// The header's bytes for this content, with the checksum of itself put in.
fn header_with_checksum(meta: &mut BTreeMap<String, String>, entries: &[Entry<'_>]) -> Vec<u8> {
    meta.insert(CHECKSUM.into(), "0".repeat(16));
    let checksum = xxh3_64(&header_bytes(meta, entries));
    meta.insert(CHECKSUM.into(), format!("{checksum:016x}"));
    header_bytes(meta, entries)
}

fn header_bytes(meta: &BTreeMap<String, String>, entries: &[Entry<'_>]) -> Vec<u8> {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let pairs: Vec<String> = meta.iter().map(|(k, v)| format!("{}:{}", quote(k), quote(v))).collect();
    let mut header = format!("{{\"__metadata__\":{{{}}}", pairs.join(","));
    let mut start = 0;
    for Entry { name, storage, shape } in entries {
        let end = start + shape.iter().product::<usize>() * storage.bytes();
        let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
        header += &format!(
            ",{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{start},{end}]}}",
            quote(name),
            storage.name(),
            sizes.join(",")
        );
        start = end;
    }
    header.push('}');
    let padded = header.len().next_multiple_of(8);
    let mut bytes = header.into_bytes();
    bytes.resize(padded, b' ');
    bytes
}

fn damaged_header(path: &Path, detail: impl Into<String>) -> StateError {
    StateError::Damaged { path: path.to_owned(), offset: 0, place: Place::Header, detail: detail.into() }
}

fn read_header(file: &mut File, file_bytes: u64, path: &Path) -> Result<Vec<u8>, StateError> {
    let failed = |source| StateError::Io { path: path.to_owned(), action: "read", source };
    if file_bytes < LENGTH_BYTES {
        return Err(damaged_header(path, format!("the file has only {file_bytes} bytes")));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > file_bytes - LENGTH_BYTES {
        return Err(damaged_header(path, format!("it announces {length} bytes, the file has {file_bytes}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(failed)?;
    Ok(header)
}

struct Header {
    metadata: Metadata,
    meta: BTreeMap<String, String>,
    checksums: Vec<u64>,
}

/// Parses the header and proves it whole.
fn parse_header(header: &[u8], path: &Path) -> Result<Header, StateError> {
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|e| damaged_header(path, format!("it is no safetensors header: {e}")))?;
    let meta: BTreeMap<String, String> = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
    match meta.get(KILN_FORMAT) {
        None => return Err(StateError::Foreign { path: path.to_owned() }),
        Some(found) if *found != FORMAT.to_string() => {
            return Err(StateError::Format { path: path.to_owned(), found: found.clone(), supported: FORMAT });
        }
        Some(_) => {}
    }
    let names = sorted_names(&metadata, path)?;
    let entries: Vec<Entry<'_>> =
        names.iter().map(|(name, storage, shape)| Entry { name, storage: *storage, shape }).collect();
    if header_with_checksum(&mut meta.clone(), &entries) != header {
        return Err(damaged_header(path, "its checksum differs"));
    }
    let checksums: Option<Vec<u64>> = meta
        .get(CHECKSUMS)
        .map(|text| text.split_whitespace().map_while(|c| u64::from_str_radix(c, 16).ok()).collect());
    match checksums {
        Some(checksums) if checksums.len() == names.len() => Ok(Header { metadata, meta, checksums }),
        _ => Err(damaged_header(path, "it lacks the checksums of its tensors")),
    }
}

/// The tensors in the order that saving gives them.
fn sorted_names(metadata: &Metadata, path: &Path) -> Result<Vec<(String, Storage, Vec<usize>)>, StateError> {
    let mut names = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| match info.dtype {
            safetensors::Dtype::F32 => Ok((name, Storage::F32, info.shape.clone())),
            safetensors::Dtype::I64 => Ok((name, Storage::I64, info.shape.clone())),
            safetensors::Dtype::U64 => Ok((name, Storage::U64, info.shape.clone())),
            other => Err(damaged_header(path, format!("tensor `{name}` holds {other:?}, which no state has"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    names.sort_by_key(|(name, storage, _)| file_order(*storage, name));
    Ok(names)
}

/// A number as its little-endian bytes.
trait Element<const N: usize>: Copy {
    fn to_bytes(self) -> [u8; N];
    fn from_bytes(bytes: [u8; N]) -> Self;
}

impl Element<4> for f32 {
    fn to_bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
    fn from_bytes(bytes: [u8; 4]) -> Self {
        f32::from_le_bytes(bytes)
    }
}

impl Element<8> for i64 {
    fn to_bytes(self) -> [u8; 8] {
        self.to_le_bytes()
    }
    fn from_bytes(bytes: [u8; 8]) -> Self {
        i64::from_le_bytes(bytes)
    }
}

impl Element<8> for u64 {
    fn to_bytes(self) -> [u8; 8] {
        self.to_le_bytes()
    }
    fn from_bytes(bytes: [u8; 8]) -> Self {
        u64::from_le_bytes(bytes)
    }
}

fn for_each_piece(values: &Values<'_>, consume: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    match values {
        Values::F32(v) => pieces_of(v, consume),
        Values::I64(v) => pieces_of(v, consume),
        Values::U64(v) => pieces_of(v, consume),
    }
}

fn pieces_of<const N: usize, T: Element<N>>(
    values: &[T],
    mut consume: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for chunk in values.chunks(PIECE_BYTES / N) {
        piece.clear();
        chunk.iter().for_each(|v| piece.extend_from_slice(&v.to_bytes()));
        consume(&piece)?;
    }
    Ok(())
}

/// Reads `elements` values and the checksum of their bytes.
fn read_values(file: &mut File, storage: Storage, elements: usize) -> io::Result<(Values<'static>, u64)> {
    Ok(match storage {
        Storage::F32 => {
            let (values, checksum) = read_elements::<4, f32>(file, elements)?;
            (Values::F32(Cow::Owned(values)), checksum)
        }
        Storage::I64 => {
            let (values, checksum) = read_elements::<8, i64>(file, elements)?;
            (Values::I64(Cow::Owned(values)), checksum)
        }
        Storage::U64 => {
            let (values, checksum) = read_elements::<8, u64>(file, elements)?;
            (Values::U64(Cow::Owned(values)), checksum)
        }
    })
}

fn read_elements<const N: usize, T: Element<N>>(file: &mut File, elements: usize) -> io::Result<(Vec<T>, u64)> {
    let mut values = Vec::with_capacity(elements);
    let mut hash = Xxh3::new();
    let mut piece = vec![0; PIECE_BYTES.min(elements * N)];
    while values.len() < elements {
        let bytes = &mut piece[..PIECE_BYTES.min((elements - values.len()) * N)];
        file.read_exact(bytes)?;
        hash.update(bytes);
        let (numbers, _) = bytes.as_chunks::<N>();
        values.extend(numbers.iter().map(|b| T::from_bytes(*b)));
    }
    Ok((values, hash.digest()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sample() -> State<'static> {
        let mut state = State::default();
        let odd: Vec<f32> = (0..2 * 257).map(|i| (i as f32 * 0.37).sin()).collect();
        state.tensors.insert("blocks.3.mlp.gate".into(), TensorData::f32([2, 257], odd));
        let special = vec![f32::NAN, -0.0, f32::INFINITY, f32::MIN_POSITIVE / 2.0];
        state.tensors.insert("emb".into(), TensorData::f32([4], special));
        state.tensors.insert("empty".into(), TensorData::f32([0, 3], vec![]));
        state.tensors.insert("scalar".into(), TensorData::i64([], vec![-5]));
        state.tensors.insert("cursor".into(), TensorData::u64([2], vec![u64::MAX, 1]));
        state.meta.insert("step".into(), "17".into());
        state.meta.insert("note".into(), "quotes \" and \\ and ü\u{0}".into());
        state
    }

    #[test]
    fn round_trip_keeps_every_bit_and_saving_is_deterministic() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
        sample().save(&a).unwrap();
        let loaded = State::load(&a).unwrap();
        assert_eq!(loaded, sample());
        loaded.save(&b).unwrap();
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    }

    #[test]
    fn other_readers_of_the_format_accept_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        sample().save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let gate = read.tensor("blocks.3.mlp.gate").unwrap();
        assert_eq!((gate.dtype(), gate.shape()), (safetensors::Dtype::F32, &[2, 257][..]));
        assert_eq!(gate.data()[4..8], 0.37f32.sin().to_le_bytes());
        let cursor = read.tensor("cursor").unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(cursor % 8, 0, "eight-byte elements are aligned in the file");
    }

    /// A small generator, so that a failure can be replayed from its number.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn every_damage_is_a_typed_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        sample().save(&path).unwrap();
        let good = fs::read(&path).unwrap();
        let mut seed = 0x9E37_79B9_7F4A_7C15;
        for case in 0..2000 {
            let mut bytes = good.clone();
            match case % 4 {
                0 => bytes.truncate(random(&mut seed) as usize % good.len()),
                1 => {
                    let start = random(&mut seed) as usize % good.len();
                    let end = (start + 1 + random(&mut seed) as usize % 64).min(good.len());
                    bytes[start..end].fill(0);
                }
                2 => bytes.extend_from_slice(&random(&mut seed).to_le_bytes()[..1 + case % 8]),
                _ => {
                    let bit = random(&mut seed) as usize % (good.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            }
            fs::write(&path, &bytes).unwrap();
            match State::load(&path) {
                Ok(state) => assert!(bytes == good && state == sample(), "case {case} went unnoticed"),
                Err(error) => assert!(error.to_string().contains("a.safetensors"), "case {case}: {error}"),
            }
        }
    }

    #[test]
    fn damage_names_tensor_and_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        sample().save(&path).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        match State::load(&path).unwrap_err() {
            StateError::Damaged { offset, place, .. } => {
                assert_eq!((offset, place), (bytes.len() as u64 - 16, Place::Tensor("emb".into())));
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn hostile_headers_are_refused_before_anything_is_allocated_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let with_header = |header: &str| {
            fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
            State::load(&path).unwrap_err().to_string()
        };
        let huge = r#"{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,0]}}"#;
        assert!(with_header(huge).contains("K0863"));
        let beyond = r#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#;
        assert!(with_header(beyond).contains("K0864"));
        assert!(with_header(&"[".repeat(100_000)).contains("K0863"));
        assert!(with_header("{}").contains("K0864"));
        fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        assert!(State::load(&path).unwrap_err().to_string().contains("announces 18446744073709551615 bytes"));
        assert!(matches!(State::load(&folder.path().join("none")), Err(StateError::Missing { .. })));
    }

    #[test]
    fn a_later_format_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let header = r#"{"__metadata__":{"kiln.format":"9"}}"#;
        fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
        assert!(State::load(&path).unwrap_err().to_string().contains("has format 9, this Kiln reads 1"));
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let mut state = sample();
        state.meta.insert("kiln.checksum".into(), String::new());
        assert!(matches!(state.save(&path), Err(StateError::Name { .. })));
        let mut state = sample();
        state.tensors.insert("bad".into(), TensorData::f32([2, 2], vec![0.0; 3]));
        assert_eq!(
            state.save(&path).unwrap_err().to_string(),
            "K0867: tensor `bad` has 3 values, its shape [2, 2] needs 4"
        );
        assert!(!path.exists());
    }
}
