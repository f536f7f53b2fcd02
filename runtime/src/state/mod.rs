//! A session's saved state: named tensors and text values, to and from one safetensors file; it never knows what they mean.

pub mod durable;
mod file;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What a state file holds. Tensors may be borrowed, so that saving copies none of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State<'a> {
    /// Path → tensor, such as `blocks.3.mlp.gate`.
    pub tensors: BTreeMap<String, TensorData<'a>>,
    /// Key → text, such as `step`. Keys that start with `kiln.` are the file format's own.
    pub meta: BTreeMap<String, String>,
}

/// A tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData<'a> {
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: Values<'a>,
}

/// Elements of a tensor.
#[derive(Clone, Debug)]
pub enum Values<'a> {
    /// Weights, gradients and moments.
    F32(Cow<'a, [f32]>),
    /// Counters.
    I64(Cow<'a, [i64]>),
    /// Keys and cursors.
    U64(Cow<'a, [u64]>),
}

/// Element types of a state file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit float.
    F32,
    /// 64-bit signed integer.
    I64,
    /// 64-bit unsigned integer.
    U64,
}

/// A state file that cannot be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Nothing is there.
    #[error("K0861: there is no state file `{}`: give the path of one, or start without `--resume`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("K0862: cannot {action} state file `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `write`.
        action: &'static str,
        /// Its reason.
        source: io::Error,
    },
    /// The content is not what was saved.
    #[error("K0863: state file `{}` is damaged at byte {offset}, in {place}: {detail}; use an intact copy", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damaged part starts.
        offset: u64,
        /// `the header` or the tensor's name.
        place: Place,
        /// What is wrong there.
        detail: String,
    },
    /// A safetensors file of another program.
    #[error("K0864: `{}` has no `kiln.format` in its metadata: Kiln did not write it, so nothing proves it whole", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later Kiln.
    #[error("K0865: state file `{}` has format {found}, this Kiln reads {supported}: update Kiln", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: String,
        /// Ours.
        supported: u32,
    },
    /// A name that the format cannot hold.
    #[error("K0866: the state cannot hold the name `{name}`: {why}")]
    Name {
        /// The tensor's or value's name.
        name: String,
        /// The rule.
        why: &'static str,
    },
    /// A shape that is not its values'.
    #[error("K0867: tensor `{name}` has {values} values, its shape {} needs {}", Shape(shape), shape.iter().fold(1, |n: usize, &size| n.saturating_mul(size)))]
    Length {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its number of values.
        values: usize,
    },
    /// A text value that is absent or unreadable.
    #[error("K0868: the state's `{key}` is {}, wanted {wanted}", found.as_ref().map_or("absent".to_owned(), |f| format!("`{f}`")))]
    Meta {
        /// Its key.
        key: String,
        /// Its text.
        found: Option<String>,
        /// What it should be.
        wanted: &'static str,
    },
    /// The first tensor that differs from the model's.
    #[error("K0869: the state does not fit the model: `{name}` {difference}")]
    Unfit {
        /// The tensor.
        name: String,
        /// In what.
        difference: Difference,
    },
}

/// Part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Names, shapes and metadata.
    Header,
    /// A tensor's elements.
    Tensor(String),
}

/// How a tensor differs from the expected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The model has it, the state does not.
    Absent,
    /// The state has it, the model does not.
    Unknown,
    /// The sizes differ.
    Shape {
        /// The model's.
        expected: Vec<usize>,
        /// The state's.
        found: Vec<usize>,
    },
    /// The element types differ.
    Storage {
        /// The model's.
        expected: Storage,
        /// The state's.
        found: Storage,
    },
}

impl<'a> TensorData<'a> {
    /// A float tensor.
    pub fn f32(shape: impl Into<Vec<usize>>, values: impl Into<Cow<'a, [f32]>>) -> Self {
        TensorData { shape: shape.into(), values: Values::F32(values.into()) }
    }

    /// A signed integer tensor.
    pub fn i64(shape: impl Into<Vec<usize>>, values: impl Into<Cow<'a, [i64]>>) -> Self {
        TensorData { shape: shape.into(), values: Values::I64(values.into()) }
    }

    /// An unsigned integer tensor.
    pub fn u64(shape: impl Into<Vec<usize>>, values: impl Into<Cow<'a, [u64]>>) -> Self {
        TensorData { shape: shape.into(), values: Values::U64(values.into()) }
    }

    /// Its elements, if they are floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.values {
            Values::F32(v) => Some(v),
            Values::I64(_) | Values::U64(_) => None,
        }
    }

    /// Its elements, if they are unsigned.
    pub fn as_u64(&self) -> Option<&[u64]> {
        match &self.values {
            Values::U64(v) => Some(v),
            Values::F32(_) | Values::I64(_) => None,
        }
    }
}

impl Values<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Values::F32(v) => v.len(),
            Values::I64(v) => v.len(),
            Values::U64(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their type.
    pub fn storage(&self) -> Storage {
        match self {
            Values::F32(_) => Storage::F32,
            Values::I64(_) => Storage::I64,
            Values::U64(_) => Storage::U64,
        }
    }
}

/// Equality of bits: a saved NaN equals itself and −0 differs from 0, as a bit-exact resume needs.
impl PartialEq for Values<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Values::F32(a), Values::F32(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(x, y)| x.to_bits() == y.to_bits())
            }
            (Values::I64(a), Values::I64(b)) => a == b,
            (Values::U64(a), Values::U64(b)) => a == b,
            _ => false,
        }
    }
}

impl Storage {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Storage::F32 => 4,
            Storage::I64 | Storage::U64 => 8,
        }
    }

    /// The name that safetensors gives it.
    pub fn name(self) -> &'static str {
        match self {
            Storage::F32 => "F32",
            Storage::I64 => "I64",
            Storage::U64 => "U64",
        }
    }
}

impl State<'_> {
    /// Writes the state durably; the same state gives the same bytes.
    ///
    /// # Errors
    /// [`StateError::Io`], and [`StateError::Name`] or [`StateError::Length`] for what the format cannot hold; an existing file is then unchanged.
    pub fn save(&self, path: &Path) -> Result<(), StateError> {
        file::save(self, path)
    }

    /// Reads a state, every byte checked. Memory stays within the file's own size.
    ///
    /// # Errors
    /// Any of [`StateError`] but those of names and fit.
    pub fn load(path: &Path) -> Result<State<'static>, StateError> {
        file::load(path)
    }

    /// Compares the tensors whose names start with `prefix` with the model's, given as (path, shape) of floats.
    ///
    /// # Errors
    /// [`StateError::Unfit`] names the first difference, in the model's order, then in the state's.
    pub fn check_fits<'m>(
        &self,
        prefix: &str,
        model: impl IntoIterator<Item = (&'m str, &'m [usize])>,
    ) -> Result<(), StateError> {
        let unfit = |name: &str, difference| Err(StateError::Unfit { name: name.to_owned(), difference });
        let mut known = std::collections::BTreeSet::new();
        for (path, shape) in model {
            let name = format!("{prefix}{path}");
            let Some(found) = self.tensors.get(&name) else { return unfit(&name, Difference::Absent) };
            if found.shape != shape {
                return unfit(&name, Difference::Shape { expected: shape.to_vec(), found: found.shape.clone() });
            }
            let storage = found.values.storage();
            if storage != Storage::F32 {
                return unfit(&name, Difference::Storage { expected: Storage::F32, found: storage });
            }
            known.insert(name);
        }
        match self.tensors.keys().find(|name| name.starts_with(prefix) && !known.contains(*name)) {
            Some(name) => unfit(name, Difference::Unknown),
            None => Ok(()),
        }
    }

    /// A text value as a number or another type that reads back from its own text.
    ///
    /// # Errors
    /// [`StateError::Meta`] if it is absent or does not parse; `wanted` says what it should be.
    pub fn meta_value<T: std::str::FromStr>(&self, key: &str, wanted: &'static str) -> Result<T, StateError> {
        let found = self.meta.get(key);
        found.and_then(|text| text.parse().ok()).ok_or_else(|| StateError::Meta {
            key: key.to_owned(),
            found: found.cloned(),
            wanted,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("the header"),
            Place::Tensor(name) => write!(f, "tensor `{name}`"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Absent => f.write_str("is in the model, not in the state"),
            Difference::Unknown => f.write_str("is in the state, not in the model"),
            Difference::Shape { expected, found } => {
                write!(f, "is {} in the model, {} in the state", Shape(expected), Shape(found))
            }
            Difference::Storage { expected, found } => {
                write!(f, "holds {} in the model, {} in the state", expected.name(), found.name())
            }
        }
    }
}

/// Prints `[2, 3]`.
struct Shape<'a>(&'a [usize]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State<'static> {
        let mut state = State::default();
        state.tensors.insert("param.w".into(), TensorData::f32([2, 3], vec![0.5; 6]));
        state.tensors.insert("param.n".into(), TensorData::f32([3], vec![1.0; 3]));
        state.tensors.insert("rng".into(), TensorData::u64([1], vec![7]));
        state.meta.insert("step".into(), "12".into());
        state
    }

    fn fit(model: &[(&str, &[usize])]) -> Result<(), String> {
        state().check_fits("param.", model.iter().copied()).map_err(|e| e.to_string())
    }

    #[test]
    fn first_difference_from_the_model_is_named() {
        assert_eq!(fit(&[("w", &[2, 3]), ("n", &[3])]), Ok(()));
        assert_eq!(
            fit(&[("w", &[2, 4]), ("n", &[5])]).unwrap_err(),
            "K0869: the state does not fit the model: `param.w` is [2, 4] in the model, [2, 3] in the state"
        );
        assert!(fit(&[("w", &[2, 3])]).unwrap_err().contains("`param.n` is in the state, not in the model"));
        assert!(fit(&[("w", &[2, 3]), ("b", &[3])]).unwrap_err().contains("`param.b` is in the model, not"));
        let wrong_type = state().check_fits("", [("rng", &[1][..])]).unwrap_err();
        assert!(wrong_type.to_string().contains("`rng` holds F32 in the model, U64 in the state"));
    }

    #[test]
    fn text_values_are_read_with_their_type() {
        assert_eq!(state().meta_value::<u64>("step", "a number of steps").unwrap(), 12);
        let absent = state().meta_value::<u64>("seed", "a number").unwrap_err();
        assert_eq!(absent.to_string(), "K0868: the state's `seed` is absent, wanted a number");
    }
}
