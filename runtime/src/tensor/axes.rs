//! Axes as arguments of methods: an axis, several in a tuple or in brackets.

use crate::layer;
use kiln_compiler::ir::Axis;

/// One axis as an argument: a unit type made by `axes!`.
pub trait IntoAxis {
    /// The axis.
    fn into_axis(self) -> Axis;
}

/// One or several axes as an argument.
pub trait IntoAxes {
    /// The axes, in order.
    fn into_axes(self) -> Vec<Axis>;
}

impl<A: layer::Axis> IntoAxis for A {
    fn into_axis(self) -> Axis {
        Axis::of(A::NAME)
    }
}

impl IntoAxis for Axis {
    fn into_axis(self) -> Axis {
        self
    }
}

impl<A: layer::Axis> IntoAxes for A {
    fn into_axes(self) -> Vec<Axis> {
        vec![self.into_axis()]
    }
}

impl IntoAxes for Axis {
    fn into_axes(self) -> Vec<Axis> {
        vec![self]
    }
}

impl<A: IntoAxis, const N: usize> IntoAxes for [A; N] {
    fn into_axes(self) -> Vec<Axis> {
        self.into_iter().map(IntoAxis::into_axis).collect()
    }
}

impl IntoAxes for &[&str] {
    fn into_axes(self) -> Vec<Axis> {
        self.iter().map(|a| Axis::new(a)).collect()
    }
}

macro_rules! tuple_axes {
    ($($name:ident),+) => {
        impl<$($name: IntoAxis),+> IntoAxes for ($($name,)+) {
            fn into_axes(self) -> Vec<Axis> {
                #[allow(non_snake_case, reason = "the type parameters name the fields")]
                let ($($name,)+) = self;
                vec![$($name.into_axis()),+]
            }
        }
    };
}
tuple_axes!(A0);
tuple_axes!(A0, A1);
tuple_axes!(A0, A1, A2);
tuple_axes!(A0, A1, A2, A3);
tuple_axes!(A0, A1, A2, A3, A4);
tuple_axes!(A0, A1, A2, A3, A4, A5);
