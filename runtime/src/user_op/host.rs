//! What a host reference reads and makes: dense row-major arrays of numbers and of ids.

/// A dense row-major array of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct HostArray {
    /// Sizes, slowest axis first.
    pub dims: Vec<usize>,
    /// Elements.
    pub data: Vec<f32>,
}

/// A dense row-major array of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIds {
    /// Sizes, slowest axis first.
    pub dims: Vec<usize>,
    /// Elements; a negative id stands for none.
    pub data: Vec<i32>,
}

/// One operand of a reference.
#[derive(Clone, Debug, PartialEq)]
pub enum HostValue {
    /// Numbers.
    Floats(HostArray),
    /// Ids.
    Ids(HostIds),
}

impl HostArray {
    /// An array from its parts.
    ///
    /// # Panics
    /// If the number of elements is not the product of the sizes.
    #[track_caller]
    pub fn new(dims: impl Into<Vec<usize>>, data: Vec<f32>) -> HostArray {
        let dims = dims.into();
        let elements: usize = dims.iter().product();
        assert_eq!(elements, data.len(), "K0122: an array of sizes {dims:?} has {elements} elements");
        HostArray { dims, data }
    }

    /// An array of zeros.
    pub fn zeros(dims: impl Into<Vec<usize>>) -> HostArray {
        let dims = dims.into();
        let data = vec![0.0; dims.iter().product()];
        HostArray { dims, data }
    }
}

impl HostValue {
    /// Sizes, slowest axis first.
    pub fn dims(&self) -> &[usize] {
        match self {
            HostValue::Floats(x) => &x.dims,
            HostValue::Ids(x) => &x.dims,
        }
    }

    /// The numbers.
    ///
    /// # Panics
    /// If it holds ids: callers check kinds against the operation's record first.
    pub fn floats(&self) -> &HostArray {
        match self {
            HostValue::Floats(x) => x,
            HostValue::Ids(_) => panic!("an operand of numbers holds ids: a bug of Kiln"),
        }
    }

    /// The ids.
    ///
    /// # Panics
    /// If it holds numbers: callers check kinds against the operation's record first.
    pub fn ids(&self) -> &HostIds {
        match self {
            HostValue::Ids(x) => x,
            HostValue::Floats(_) => panic!("an operand of ids holds numbers: a bug of Kiln"),
        }
    }
}

/// What a reference returns: one array, or several in a tuple.
pub trait HostResults {
    /// The arrays in order.
    fn into_arrays(self) -> Vec<HostArray>;
}

impl HostResults for HostArray {
    fn into_arrays(self) -> Vec<HostArray> {
        vec![self]
    }
}

macro_rules! tuple_results {
    ($($at:tt),+) => {
        impl HostResults for ($(tuple_results!(@array $at),)+) {
            fn into_arrays(self) -> Vec<HostArray> {
                vec![$(self.$at),+]
            }
        }
    };
    (@array $at:tt) => { HostArray };
}
tuple_results!(0, 1);
tuple_results!(0, 1, 2);
tuple_results!(0, 1, 2, 3);
tuple_results!(0, 1, 2, 3, 4);
tuple_results!(0, 1, 2, 3, 4, 5);
tuple_results!(0, 1, 2, 3, 4, 5, 6);
tuple_results!(0, 1, 2, 3, 4, 5, 6, 7);
