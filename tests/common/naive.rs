//! A naive supernet that computes one operation on one edge at a time, as the published code does: the oracle for the
//! stacked network and the baseline of its benchmark.
//!
//! Weights are looked up by their published names; NCHW throughout.

use drnas_dist::net::params::Named;
use drnas_dist::net::supernet::SupernetShape;
use drnas_dist::space::nb201::EDGES;
use drnas_dist::space::{Operation, SearchSpace};
use tch::Tensor;

/// A naive supernet over weights (leaves) and running statistics, both by published name.
pub struct Naive<'a> {
    pub shape: &'a SupernetShape,
    pub weights: &'a Named,
    pub running: &'a Named,
}

fn conv(x: &Tensor, weight: &Tensor, stride: i64, padding: i64, dilation: i64, groups: i64) -> Tensor {
    x.conv2d(weight, None::<&Tensor>, [stride; 2], [padding; 2], [dilation; 2], groups)
}

impl Naive<'_> {
    fn weight(&self, name: &str) -> &Tensor {
        self.weights.get(name).unwrap_or_else(|| panic!("no weight {name}"))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let running = |suffix: &str| &self.running[&format!("{name}.running_{suffix}")];
        let (weight, bias) =
            (self.weights.get(&format!("{name}.weight")), self.weights.get(&format!("{name}.bias")));
        x.batch_norm(weight, bias, Some(running("mean")), Some(running("var")), true, 0.1, 1e-5, true)
    }

    fn factorized_reduce(&self, x: &Tensor, name: &str) -> Tensor {
        let x = x.relu();
        let shifted = x.slice(2, 1, None, 1).slice(3, 1, None, 1);
        let parts = [
            conv(&x, self.weight(&format!("{name}.conv_1.weight")), 2, 0, 1, 1),
            conv(&shifted, self.weight(&format!("{name}.conv_2.weight")), 2, 0, 1, 1),
        ];
        self.norm(&Tensor::cat(&parts, 1), &format!("{name}.bn"))
    }

    fn relu_conv_norm(&self, x: &Tensor, name: &str) -> Tensor {
        let y = conv(&x.relu(), self.weight(&format!("{name}.op.1.weight")), 1, 0, 1, 1);
        self.norm(&y, &format!("{name}.op.2"))
    }

    fn separable(
        &self,
        x: &Tensor,
        name: &str,
        at: usize,
        kernel: i64,
        stride: i64,
        dilation: i64,
    ) -> Tensor {
        let (x, channels) = (x.relu(), x.size()[1]);
        let weight = |position: usize| self.weight(&format!("{name}.op.{position}.weight"));
        let y = conv(&x, weight(at), stride, dilation * (kernel / 2), dilation, channels);
        self.norm(&conv(&y, weight(at + 1), 1, 0, 1, 1), &format!("{name}.op.{}", at + 2))
    }

    fn operation(&self, x: &Tensor, name: &str, operation: Operation, stride: i64) -> Tensor {
        match operation {
            Operation::MaxPool3x3 => {
                self.norm(&x.max_pool2d([3, 3], [stride; 2], [1, 1], [1, 1], false), &format!("{name}.op.1"))
            }
            Operation::AvgPool3x3 => self.norm(
                &x.avg_pool2d([3, 3], [stride; 2], [1, 1], false, false, None::<i64>),
                &format!("{name}.op.1"),
            ),
            Operation::SkipConnect if stride == 1 => x.shallow_clone(),
            Operation::SkipConnect => self.factorized_reduce(x, name),
            Operation::SepConv3x3 | Operation::SepConv5x5 => {
                let kernel = if operation == Operation::SepConv3x3 { 3 } else { 5 };
                let y = self.separable(x, name, 1, kernel, stride, 1);
                self.separable(&y, name, 5, kernel, 1, 1)
            }
            Operation::DilConv3x3 => self.separable(x, name, 1, 3, stride, 2),
            Operation::DilConv5x5 => self.separable(x, name, 1, 5, stride, 2),
            Operation::None => x.slice(2, None, None, stride).slice(3, None, None, stride) * 0.0,
            Operation::Noise => unreachable!("the output of this operation is random"),
            Operation::NorConv1x1 | Operation::NorConv3x3 => unreachable!("an operation of NAS-Bench-201"),
        }
    }

    /// An operation of NAS-Bench-201: pooling has no batch norm, convolutions are dense.
    fn operation_201(&self, x: &Tensor, name: &str, operation: Operation) -> Tensor {
        let kernel = match operation {
            Operation::None => return x * 0.0,
            Operation::SkipConnect => return x.shallow_clone(),
            Operation::AvgPool3x3 => {
                return x.avg_pool2d([3, 3], [1, 1], [1, 1], false, false, None::<i64>);
            }
            Operation::NorConv1x1 => 1,
            _ => 3,
        };
        self.relu_conv_norm_of(x, name, kernel, 1)
    }

    fn relu_conv_norm_of(&self, x: &Tensor, name: &str, kernel: i64, stride: i64) -> Tensor {
        let y = conv(&x.relu(), self.weight(&format!("{name}.op.1.weight")), stride, kernel / 2, 1, 1);
        self.norm(&y, &format!("{name}.op.2"))
    }

    fn mixed(&self, x: &Tensor, theta: &Tensor, cell: usize, edge: usize, stride: i64) -> Tensor {
        let (k, channels) = (self.shape.k, x.size()[1]);
        let space = self.shape.space;
        let mask = &self.shape.masks[self.shape.table(cell)];
        let head = x.narrow(1, 0, channels / k);
        let mut sum: Option<Tensor> = None;
        for (column, &operation) in self.shape.operations.iter().enumerate() {
            if mask.keeps(edge, column) {
                // Published names number the operations of the published space.
                let number = space.operations().iter().position(|&other| other == operation);
                let number = number.map_or(String::new(), |number| number.to_string());
                let weight = theta.get(edge as i64).get(column as i64);
                let output = match space {
                    SearchSpace::NasBench201 => {
                        let (node, from) = EDGES[edge];
                        let name = format!("cells.{cell}.edges.{node}<-{from}.{number}");
                        self.operation_201(&head, &name, operation)
                    }
                    _ => {
                        let name = format!("cells.{cell}._ops.{edge}._ops.{number}");
                        self.operation(&head, &name, operation, stride)
                    }
                };
                let term = output * weight;
                sum = Some(match sum {
                    Some(sum) => sum + term,
                    None => term,
                });
            }
        }
        let sum = sum.expect("an operation is kept");
        if k == 1 {
            return sum;
        }
        let rest = x.narrow(1, channels / k, channels - channels / k);
        let rest = if stride == 2 { rest.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false) } else { rest };
        let y = Tensor::cat(&[sum, rest], 1);
        let (n, _, h, w) = y.size4().unwrap();
        y.view([n, k, channels / k, h, w]).transpose(1, 2).contiguous().view([n, channels, h, w])
    }

    /// Logits of the NAS-Bench-201 network.
    fn logits_201(&self, images: &Tensor, theta: &Tensor) -> Tensor {
        let mut x = self.norm(&conv(images, self.weight("stem.0.weight"), 1, 1, 1, 1), "stem.1");
        for cell in 0..self.shape.num_cells() {
            let name = |which: &str| format!("cells.{cell}.{which}");
            if self.shape.is_reduction(cell) {
                let y = self.relu_conv_norm_of(&x, &name("conv_a"), 3, 2);
                let y = self.relu_conv_norm_of(&y, &name("conv_b"), 3, 1);
                let pooled = x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
                x = y + conv(&pooled, self.weight(&name("downsample.1.weight")), 1, 0, 1, 1);
                continue;
            }
            let mut states = vec![x];
            for node in 1..4 {
                let edges = (0..EDGES.len()).filter(|&edge| EDGES[edge].0 == node);
                let terms = edges.map(|edge| self.mixed(&states[EDGES[edge].1], theta, cell, edge, 1));
                states.push(terms.reduce(|sum, term| sum + term).unwrap());
            }
            x = states.pop().unwrap();
        }
        let pooled = self.norm(&x, "lastact.0").relu().mean_dim([2i64, 3].as_slice(), false, None);
        pooled.linear(self.weight("classifier.weight"), Some(self.weight("classifier.bias")))
    }

    /// Logits of `images` [N, C, H, W] for mixing weights `theta`, one [E, O] per table, in training mode.
    pub fn logits(&self, images: &Tensor, theta: &[Tensor]) -> Tensor {
        if self.shape.space == SearchSpace::NasBench201 {
            return self.logits_201(images, &theta[0]);
        }
        let stem = |x: &Tensor, name: &str, at: usize, stride: i64| {
            let y = conv(x, self.weight(&format!("{name}.{at}.weight")), stride, 1, 1, 1);
            self.norm(&y, &format!("{name}.{}", at + 1))
        };
        let imagenet = self.shape.space == SearchSpace::DartsImagenet;
        let (mut s0, mut s1) = if imagenet {
            let s0 = stem(&stem(images, "stem0", 0, 2).relu(), "stem0", 3, 2);
            let s1 = stem(&s0.relu(), "stem1", 1, 2);
            (s0, s1)
        } else {
            let s = stem(images, "stem", 0, 1);
            (s.shallow_clone(), s)
        };
        let mut reduction_prev = imagenet;
        for cell in 0..self.shape.layers {
            let reduction = self.shape.is_reduction(cell);
            let name = |which: &str| format!("cells.{cell}.{which}");
            let older = if reduction_prev {
                self.factorized_reduce(&s0, &name("preprocess0"))
            } else {
                self.relu_conv_norm(&s0, &name("preprocess0"))
            };
            let mut states = vec![older, self.relu_conv_norm(&s1, &name("preprocess1"))];
            let mut edge = 0;
            for _ in 0..4 {
                let mut sum: Option<Tensor> = None;
                for (from, state) in states.iter().enumerate() {
                    let stride = if reduction && from < 2 { 2 } else { 1 };
                    let term = self.mixed(state, &theta[usize::from(reduction)], cell, edge + from, stride);
                    sum = Some(match sum {
                        Some(sum) => sum + term,
                        None => term,
                    });
                }
                edge += states.len();
                states.push(sum.unwrap());
            }
            (s0, s1) = (s1, Tensor::cat(&states[2..], 1));
            reduction_prev = reduction;
        }
        let pooled = s1.mean_dim([2i64, 3].as_slice(), false, None);
        pooled.linear(self.weight("classifier.weight"), Some(self.weight("classifier.bias")))
    }
}
