//! Rotary position embedding (Su et al. 2021), pairs as halves.

use super::rows::for_each_row;

/// Rotates the first `2 * frequencies.len()` dimensions of each head by its row's position; `direction` is 1
/// forward and -1 backward, since a rotation's gradient is the rotation back.
///
/// `x` has rows of `stride`, whose first `heads` heads of `head_size` (queries, then keys) are rotated.
pub(crate) fn rotate(
    x: &mut [f32],
    stride: usize,
    heads: usize,
    head_size: usize,
    positions: &[u32],
    frequencies: &[f32],
    direction: f32,
) {
    let half = frequencies.len();
    for_each_row(x, stride, |row, x| {
        let mut angles = [(0.0f32, 0.0f32); 128];
        for (angle, frequency) in angles.iter_mut().zip(frequencies) {
            let (sin, cos) = (positions[row] as f32 * frequency).sin_cos();
            *angle = (cos, direction * sin);
        }
        for head in x.chunks_exact_mut(head_size).take(heads) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for ((x, y), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
            }
        }
    });
}
