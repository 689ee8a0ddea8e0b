//! From a text's vector to its labels' scores.

use super::heap;
use super::settings::Loss;

/// fastText's table of logistic values: 512 steps over -8 to 8.
const LOGISTIC_STEPS: usize = 512;
const LOGISTIC_BOUND: f32 = 8.0;

/// The output layer, laid out for its loss.
pub(super) enum Output {
    /// Every label has a score: softmax, and the losses with a logistic decision for each label.
    Flat {
        /// Column by column, so that all labels' products are summed side by side, each in fastText's own order: its
        /// logistic table turns a difference in the last digit into one of 0.008.
        columns: Vec<f32>,
        /// A factor for each label, or nothing.
        norms: Vec<f32>,
        /// The table of logistic values; none for softmax.
        logistic: Option<Vec<f32>>,
    },
    /// A tree with the labels as its leaves.
    Tree {
        /// Row by row: inner node after inner node.
        rows: Vec<f32>,
        /// A factor for each row, or nothing.
        norms: Vec<f32>,
        /// The children of each inner node.
        children: Vec<[u32; 2]>,
        /// Number of leaves: nodes below it are labels.
        labels: usize,
    },
}

/// What is kept from text to text so that none of it is allocated anew.
#[derive(Default)]
pub(super) struct Scores {
    values: Vec<f32>,
    stack: Vec<(u32, f32)>,
    pub(super) best: Vec<heap::Scored>,
}

impl Output {
    /// `values` row by row, a row for each label.
    pub(super) fn new(loss: Loss, values: Vec<f32>, norms: Vec<f32>, counts: &[i64]) -> Self {
        let labels = counts.len();
        if loss == Loss::HierarchicalSoftmax {
            return Self::Tree { rows: values, norms, children: tree(counts), labels };
        }
        let dimensions = values.len() / labels.max(1);
        let columns = (0..dimensions).flat_map(|column| values[column..].iter().step_by(dimensions)).copied();
        let logistic = (loss != Loss::Softmax).then(logistic_table);
        Self::Flat { columns: columns.collect(), norms, logistic }
    }

    /// Leaves the `count` best labels in `scores.best`, best first, none of them under `lowest` (a logarithm).
    pub(super) fn score(&self, hidden: &[f32], count: usize, lowest: f32, scores: &mut Scores) {
        scores.best.clear();
        match self {
            Self::Flat { columns, norms, logistic } => {
                products(columns, norms, hidden, &mut scores.values);
                match logistic {
                    Some(table) => scores.values.iter_mut().for_each(|value| *value = look_up(table, *value)),
                    None => softmax(&mut scores.values),
                }
                keep_best(&scores.values, count, lowest, &mut scores.best);
            }
            Self::Tree { rows, norms, children, labels } => {
                let tree = Tree { rows, norms, children, labels: *labels };
                tree.search(hidden, count, lowest, &mut scores.stack, &mut scores.best);
            }
        }
        heap::sort(&mut scores.best);
    }
}

fn products(columns: &[f32], norms: &[f32], hidden: &[f32], values: &mut Vec<f32>) {
    let labels = columns.len() / hidden.len();
    values.clear();
    values.resize(labels, 0.0);
    for (column, &factor) in columns.chunks_exact(labels).zip(hidden) {
        for (value, weight) in values.iter_mut().zip(column) {
            *value += factor * weight;
        }
    }
    for (value, norm) in values.iter_mut().zip(norms) {
        *value *= norm;
    }
}

fn softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in &mut *values {
        *value = (*value - largest).exp();
        sum += *value;
    }
    for value in values {
        *value /= sum;
    }
}

fn logistic_table() -> Vec<f32> {
    let width = 2.0 * LOGISTIC_BOUND;
    (0..=LOGISTIC_STEPS)
        .map(|step| (step as f32 * width) / LOGISTIC_STEPS as f32 - LOGISTIC_BOUND)
        .map(|x| (1.0 / (1.0 + f64::from((-x).exp()))) as f32)
        .collect()
}

fn look_up(table: &[f32], x: f32) -> f32 {
    if x < -LOGISTIC_BOUND {
        0.0
    } else if x > LOGISTIC_BOUND {
        1.0
    } else if x.is_nan() {
        x
    } else {
        table[((x + LOGISTIC_BOUND) * LOGISTIC_STEPS as f32 / LOGISTIC_BOUND / 2.0) as usize]
    }
}

/// fastText's logarithm, which is finite at 0.
pub(super) fn logarithm(x: f32) -> f32 {
    (f64::from(x) + 1e-5).ln() as f32
}

fn keep_best(values: &[f32], count: usize, lowest: f32, best: &mut Vec<heap::Scored>) {
    // A value clearly under the worst kept one needs no logarithm; one close to it does, because rounding may make
    // the two equal, and then the later one stays.
    let mut clearly_under = f32::NEG_INFINITY;
    for (label, &value) in values.iter().enumerate() {
        if value < clearly_under || value.is_nan() {
            continue;
        }
        let score = logarithm(value);
        let is_full = best.len() == count;
        if score < lowest || (is_full && score < best[0].0) {
            continue;
        }
        heap::push(best, (score, label as u32), count);
        if best.len() == count {
            clearly_under = 0.999 * best[0].0.exp() - 1e-5;
        }
    }
}

struct Tree<'a> {
    rows: &'a [f32],
    norms: &'a [f32],
    children: &'a [[u32; 2]],
    labels: usize,
}

impl Tree<'_> {
    /// Walks the tree, left before right, leaving out what is under `lowest` or under the worst of `count` kept ones.
    /// With a stack of its own: a hostile file's tree may be as deep as it has labels.
    fn search(
        &self,
        hidden: &[f32],
        count: usize,
        lowest: f32,
        stack: &mut Vec<(u32, f32)>,
        best: &mut Vec<heap::Scored>,
    ) {
        let root = (self.labels + self.children.len() - 1) as u32;
        stack.clear();
        stack.push((root, 0.0));
        while let Some((node, score)) = stack.pop() {
            let is_under = score < lowest || (best.len() == count && score < best[0].0);
            if is_under || score.is_nan() {
                continue;
            }
            let Some(inner) = (node as usize).checked_sub(self.labels) else {
                heap::push(best, (score, node), count);
                continue;
            };
            let right = self.decision(hidden, inner);
            let [left_child, right_child] = self.children[inner];
            stack.push((right_child, score + logarithm(right)));
            stack.push((left_child, score + logarithm((1.0 - f64::from(right)) as f32)));
        }
    }

    fn decision(&self, hidden: &[f32], inner: usize) -> f32 {
        let row = &self.rows[inner * hidden.len()..][..hidden.len()];
        let product: f32 = hidden.iter().zip(row).fold(0.0, |sum, (a, b)| sum + a * b);
        let product = product * self.norms.get(inner).copied().unwrap_or(1.0);
        (1.0 / f64::from(1.0 + (-product).exp())) as f32
    }
}

/// The Huffman tree over labels, built as fastText builds it: from counts that it takes to be in descending order.
/// Counts are at most [`LARGEST_COUNT`], so that no node that is yet to be built looks like the smaller one.
fn tree(counts: &[i64]) -> Vec<[u32; 2]> {
    let labels = counts.len();
    let mut sums: Vec<i64> = Vec::with_capacity(labels);
    let mut children = Vec::with_capacity(labels);
    let mut leaves = labels;
    let mut next = 0;
    for _ in 1..labels {
        let mut sum = 0;
        let pair = [(); 2].map(|()| {
            let node_sum = sums.get(next).copied().unwrap_or(UNBUILT);
            if leaves > 0 && counts[leaves - 1] < node_sum {
                leaves -= 1;
                sum += counts[leaves];
                leaves as u32
            } else {
                next += 1;
                sum += node_sum;
                (labels + next - 1) as u32
            }
        });
        sums.push(sum);
        children.push(pair);
    }
    children
}

/// What fastText takes for the count of a node that is yet to be built.
const UNBUILT: i64 = 1_000_000_000_000_000;
/// The largest count a label may have for a tree of `labels`.
pub(super) fn largest_count(labels: usize) -> i64 {
    (UNBUILT - 1) / labels.max(1) as i64
}
