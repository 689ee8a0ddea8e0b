//! From a file's tensors to a slot's, and back: parts laid one below the other, rows put in order.

use std::borrow::Cow;
use std::path::Path;

use bytemuck::AnyBitPattern;
use engine::decoder::weights::{HostData, HostTensor};
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::families::{Part, Parts};

/// A file, or files, from which tensors are read by name.
pub(crate) trait TensorFile {
    /// The tensor's shape and elements as they are stored.
    fn tensor(&self, name: &str) -> Result<Option<HostTensor<'_>>>;
    /// What to name in messages about `name`.
    fn path_of(&self, name: &str) -> &Path;
}

/// The tensor of a slot whose shape is `shape`.
///
/// Borrowed from the file where the file has it just so; otherwise gathered. Parts of different types are widened.
pub(crate) fn assemble<'a>(
    file: &'a dyn TensorFile,
    from: &Parts,
    shape: &[usize],
) -> Result<HostTensor<'a>> {
    let mut tensors = Vec::with_capacity(from.parts.len());
    for part in &from.parts {
        let expected: Vec<usize> = [&[part.rows], &shape[1..]].concat();
        let tensor = file.tensor(&part.name)?.ok_or_else(|| Error::MissingTensor {
            path: file.path_of(&part.name).to_owned(),
            tensor: part.name.clone(),
            expected: expected.clone(),
        })?;
        if tensor.shape != expected {
            return Err(Error::Shape {
                path: file.path_of(&part.name).to_owned(),
                tensor: part.name.clone(),
                found: tensor.shape,
                expected,
            });
        }
        tensors.push(tensor);
    }
    let as_it_is = from.parts.len() == 1 && is_ordered(&from.parts[0]) && from.offset == 0.0;
    if as_it_is && let Some(tensor) = tensors.pop() {
        return Ok(tensor);
    }
    let columns = shape[1..].iter().product();
    let data = if from.offset != 0.0 {
        let mut data = gather(&from.parts, columns, &widened(&tensors));
        data.iter_mut().for_each(|element| *element += from.offset);
        HostData::F32(data.into())
    } else {
        gather_in_type(&from.parts, columns, &tensors)
    };
    Ok(HostTensor { shape: shape.to_vec(), data })
}

fn is_ordered(part: &Part) -> bool {
    (0..part.rows).all(|row| part.order.stored_row(row) == row)
}

/// Keeps the files' type where all parts have the same.
fn gather_in_type(parts: &[Part], columns: usize, tensors: &[HostTensor<'_>]) -> HostData<'static> {
    let brain: Option<Vec<&[bf16]>> = tensors.iter().map(as_bf16).collect();
    if let Some(data) = brain {
        return HostData::Bf16(gather(parts, columns, &data).into());
    }
    let half: Option<Vec<&[f16]>> = tensors.iter().map(as_f16).collect();
    if let Some(data) = half {
        return HostData::F16(gather(parts, columns, &data).into());
    }
    HostData::F32(gather(parts, columns, &widened(tensors)).into())
}

fn as_bf16<'t>(tensor: &'t HostTensor<'_>) -> Option<&'t [bf16]> {
    if let HostData::Bf16(data) = &tensor.data { Some(data) } else { None }
}

fn as_f16<'t>(tensor: &'t HostTensor<'_>) -> Option<&'t [f16]> {
    if let HostData::F16(data) = &tensor.data { Some(data) } else { None }
}

fn widened(tensors: &[HostTensor<'_>]) -> Vec<Vec<f32>> {
    tensors.iter().map(HostTensor::to_f32).collect()
}

fn gather<T: Copy, D: AsRef<[T]>>(parts: &[Part], columns: usize, data: &[D]) -> Vec<T> {
    let rows: usize = parts.iter().map(|part| part.rows).sum();
    let mut gathered = Vec::with_capacity(rows * columns);
    for (part, data) in parts.iter().zip(data) {
        let data = data.as_ref();
        for row in 0..part.rows {
            let stored = part.order.stored_row(row) * columns;
            gathered.extend_from_slice(&data[stored..stored + columns]);
        }
    }
    gathered
}

/// The slot's rows from `first` on that make up `part`, in the file's order: the inverse of [`assemble`].
pub(crate) fn split<'a>(
    tensor: &'a HostTensor<'a>,
    part: &Part,
    first: usize,
    offset: f32,
) -> HostTensor<'a> {
    let columns: usize = tensor.shape[1..].iter().product();
    let shape: Vec<usize> = [&[part.rows], &tensor.shape[1..]].concat();
    let range = first * columns..(first + part.rows) * columns;
    let data = match &tensor.data {
        HostData::F32(data) if offset != 0.0 => {
            let rows: Vec<f32> = data[range].iter().map(|element| element - offset).collect();
            HostData::F32(scatter(part, columns, &rows).into())
        }
        _ if offset != 0.0 => {
            let rows: Vec<f32> = tensor.to_f32()[range].iter().map(|element| element - offset).collect();
            HostData::F32(scatter(part, columns, &rows).into())
        }
        HostData::F32(data) => HostData::F32(in_file_order(part, columns, &data[range])),
        HostData::Bf16(data) => HostData::Bf16(in_file_order(part, columns, &data[range])),
        HostData::F16(data) => HostData::F16(in_file_order(part, columns, &data[range])),
    };
    HostTensor { shape, data }
}

fn in_file_order<'a, T: Copy>(part: &Part, columns: usize, rows: &'a [T]) -> Cow<'a, [T]> {
    if is_ordered(part) { Cow::Borrowed(rows) } else { Cow::Owned(scatter(part, columns, rows)) }
}

/// Row `r` of the decoder goes to the file's row for it.
fn scatter<T: Copy>(part: &Part, columns: usize, rows: &[T]) -> Vec<T> {
    // Every row is written once, since the order is a permutation; the copy only gives them a first value.
    let mut scattered = rows.to_vec();
    for row in 0..part.rows {
        let stored = part.order.stored_row(row) * columns;
        scattered[stored..stored + columns].copy_from_slice(&rows[row * columns..(row + 1) * columns]);
    }
    scattered
}

/// Little-endian bytes as numbers: borrowed where they lie aligned, copied where they do not.
pub(crate) fn numbers<T: AnyBitPattern + FromLittleEndian>(bytes: &[u8]) -> Cow<'_, [T]> {
    if cfg!(target_endian = "little")
        && let Ok(numbers) = bytemuck::try_cast_slice(bytes)
    {
        return Cow::Borrowed(numbers);
    }
    Cow::Owned(bytes.chunks_exact(size_of::<T>()).map(T::from_little_endian).collect())
}

/// A number that files hold in little-endian order.
pub(crate) trait FromLittleEndian: Copy {
    /// From as many bytes as the number has.
    fn from_little_endian(bytes: &[u8]) -> Self;
}

impl FromLittleEndian for f32 {
    fn from_little_endian(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl FromLittleEndian for bf16 {
    fn from_little_endian(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1]])
    }
}

impl FromLittleEndian for f16 {
    fn from_little_endian(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1]])
    }
}

/// The elements as files hold them.
pub(crate) fn bytes<'a>(data: &'a HostData<'_>) -> Cow<'a, [u8]> {
    if cfg!(target_endian = "little") {
        return Cow::Borrowed(match data {
            HostData::F32(data) => bytemuck::cast_slice(data),
            HostData::Bf16(data) => bytemuck::cast_slice(data),
            HostData::F16(data) => bytemuck::cast_slice(data),
        });
    }
    Cow::Owned(match data {
        HostData::F32(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        HostData::Bf16(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        HostData::F16(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::families::Order;

    struct One(Vec<HostTensor<'static>>);

    impl TensorFile for One {
        fn tensor(&self, name: &str) -> Result<Option<HostTensor<'_>>> {
            Ok(name.parse().ok().and_then(|index: usize| self.0.get(index).cloned()))
        }
        fn path_of(&self, _: &str) -> &Path {
            Path::new("file")
        }
    }

    #[test]
    fn interleaved_heads_come_apart_as_transformers_does_it() {
        // view(heads = 2, 3, head_size = 2): rows q00 q01 k00 k01 v00 v01 q10 q11 k10 k11 v10 v11.
        let stored = HostTensor {
            shape: vec![12],
            data: HostData::F32((0..12).map(|x| x as f32).collect::<Vec<_>>().into()),
        };
        let order = Order::Interleaved { heads: 2, head_size: 2 };
        let parts = Parts { parts: vec![Part { name: "0".into(), rows: 12, order }], offset: 0.0 };
        let file = One(vec![stored]);
        let read = assemble(&file, &parts, &[12]).unwrap().to_f32();
        assert_eq!(read, [0., 1., 6., 7., 2., 3., 8., 9., 4., 5., 10., 11.]);
    }

    proptest! {
        #[test]
        fn what_is_split_is_assembled_again(
            heads in 1usize..5, half in 1usize..4, rest in 0usize..3, columns in 1usize..4, kind in 0..3,
        ) {
            let head_size = 2 * half + rest;
            let orders = match kind {
                0 => vec![(Order::Interleaved { heads, head_size }, 3 * heads * head_size)],
                1 => vec![(Order::Neighbours { head_size, rotated: 2 * half }, heads * head_size); 2],
                _ => vec![(Order::AsStored, heads), (Order::AsStored, head_size)],
            };
            let parts: Vec<Part> = orders.into_iter().enumerate()
                .map(|(index, (order, rows))| Part { name: index.to_string(), rows, order }).collect();
            let rows: usize = parts.iter().map(|part| part.rows).sum();
            let numbers: Vec<f32> = (0..rows * columns).map(|x| x as f32).collect();
            let whole = HostTensor { shape: vec![rows, columns], data: HostData::F32(numbers.clone().into()) };
            let mut first = 0;
            let mut stored = Vec::new();
            for part in &parts {
                let piece = split(&whole, part, first, 1.0);
                stored.push(HostTensor { shape: piece.shape, data: HostData::F32(match piece.data {
                    HostData::F32(data) => data.into_owned().into(),
                    _ => unreachable!(),
                }) });
                first += part.rows;
            }
            let file = One(stored);
            let again = assemble(&file, &Parts { parts, offset: 1.0 }, &[rows, columns]).unwrap();
            prop_assert_eq!(again.to_f32(), numbers);
        }
    }
}
