//! PyTorch's values: the kept ones, or those that `cargo xtask test --tier peers --fresh` has just recomputed.

use crate::folders;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;

/// One file of values.
pub struct Values {
    /// Sizes, hyper-parameters, PyTorch's version.
    pub about: Value,
    tensors: BTreeMap<String, Tensor>,
}

/// One tensor; integers are held as whole numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Vec<f32>,
}

/// The folder with the values of this run.
pub fn folder() -> PathBuf {
    env::var_os("KILN_PEERS_VALUES").map_or_else(|| folders::root().join("tests/peers/kept"), PathBuf::from)
}

/// A Python that has PyTorch; only with `--fresh`.
pub fn python() -> Option<PathBuf> {
    env::var_os("KILN_PEERS_PYTHON").map(PathBuf::from)
}

impl Values {
    /// Reads `<name>.safetensors`.
    pub fn read(name: &str) -> Values {
        let path = folder().join(format!("{name}.safetensors"));
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let about = header.metadata().as_ref().and_then(|m| serde_json::from_str(m.get("about")?).ok());
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensors = file.iter().map(|(name, view)| (name.to_owned(), tensor(&view))).collect();
        Values { about: about.unwrap_or_default(), tensors }
    }

    /// One tensor.
    ///
    /// # Panics
    /// If the script did not write it.
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the peers' values hold no `{name}`"))
    }

    /// All tensors whose names start with `prefix/`, without it.
    pub fn under(&self, prefix: &str) -> BTreeMap<String, &Tensor> {
        let inside = |name: &str| name.strip_prefix(prefix)?.strip_prefix('/').map(str::to_owned);
        self.tensors.iter().filter_map(|(name, t)| Some((inside(name)?, t))).collect()
    }

    /// A size of the model.
    pub fn size(&self, axis: &str) -> usize {
        self.about["sizes"][axis].as_u64().unwrap_or_else(|| panic!("no size `{axis}`")) as usize
    }
}

fn tensor(view: &safetensors::tensor::TensorView<'_>) -> Tensor {
    let bytes = view.data();
    let data = match view.dtype() {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::I32 => bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
        Dtype::U8 => bytes.iter().map(|&b| f32::from(b)).collect(),
        other => panic!("the scripts write no {other:?}"),
    };
    Tensor { shape: view.shape().to_vec(), data }
}

/// ‖a − b‖ / ‖b‖.
///
/// # Panics
/// If the lengths differ or the reference is zero, which would prove nothing.
pub fn relative(actual: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(actual.len(), reference.len(), "lengths");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let scale = norm(&mut reference.iter().map(|&v| f64::from(v)));
    assert!(scale > 0.0, "an all-zero reference proves nothing");
    norm(&mut actual.iter().zip(reference).map(|(&a, &b)| f64::from(a) - f64::from(b))) / scale
}
