//! A multi-layer perceptron and a linear model of the same task: the first models of the book.

use kiln::prelude::*;

axes! { B: "batch", P: "features", H: "first hidden", M: "second hidden", C: "classes" }

/// Two hidden layers with rectifiers.
#[layer]
pub fn classifier(
    x: Tensor<B, P>,
    #[param(init = kaiming)] w1: Tensor<P, H>,
    #[param(init = zeros)] b1: Tensor<H>,
    #[param(init = kaiming)] w2: Tensor<H, M>,
    #[param(init = zeros)] b2: Tensor<M>,
    #[param(init = xavier)] w3: Tensor<M, C>,
    #[param(init = zeros)] b3: Tensor<C>,
) -> Tensor<B, C> {
    let h = (x.matmul(w1) + b1).relu();
    let m = (h.matmul(w2) + b2).relu();
    m.matmul(w3) + b3
}

/// Training root of the perceptron.
#[layer]
pub fn mlp(x: Tensor<B, P>, kind: Ids<B>, #[sub] net: Classifier) -> Loss {
    net.forward(x).cross_entropy(kind)
}

/// Classifying root over the same state.
#[layer]
pub fn mlp_logits(x: Tensor<B, P>, #[sub] net: Classifier) -> Tensor<B, C> {
    net.forward(x)
}

/// Logistic regression: the model to beat.
#[layer]
pub fn linear(
    x: Tensor<B, P>,
    #[param(init = zeros)] w: Tensor<P, C>,
    #[param(init = zeros)] b: Tensor<C>,
) -> Tensor<B, C> {
    x.matmul(w) + b
}

/// Training root of the linear model.
#[layer]
pub fn regression(x: Tensor<B, P>, kind: Ids<B>, #[sub] net: Linear) -> Loss {
    net.forward(x).cross_entropy(kind)
}

/// Classifying root of the linear model.
#[layer]
pub fn regression_logits(x: Tensor<B, P>, #[sub] net: Linear) -> Tensor<B, C> {
    net.forward(x)
}
