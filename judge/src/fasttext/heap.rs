//! The best scores, kept as fastText keeps them.
//!
//! Labels with equal scores are frequent where scores come from fastText's table of logistic values, and which of
//! them comes first depends on how the C++ library's heap moves. So these are that library's steps: `push_heap`,
//! `pop_heap` and `sort_heap` with "greater" as the order, which keeps the worst score in front.

/// A label's logarithmic score and number.
pub(super) type Scored = (f32, u32);

/// Adds to a heap that keeps at most `count` of the best.
pub(super) fn push(heap: &mut Vec<Scored>, scored: Scored, count: usize) {
    heap.push(scored);
    let last = heap.len() - 1;
    rise(heap, last, 0, scored);
    if heap.len() > count {
        pop(heap);
        heap.pop();
    }
}

/// Turns the heap into a list with the best first.
pub(super) fn sort(heap: &mut [Scored]) {
    for end in (2..=heap.len()).rev() {
        pop(&mut heap[..end]);
    }
}

/// Moves the worst to the end.
fn pop(heap: &mut [Scored]) {
    let Some(last) = heap.len().checked_sub(1).filter(|&last| last > 0) else { return };
    let value = heap[last];
    heap[last] = heap[0];
    sink(&mut heap[..last], value);
}

fn rise(heap: &mut [Scored], mut hole: usize, top: usize, value: Scored) {
    while hole > top {
        let parent = (hole - 1) / 2;
        if heap[parent].0 <= value.0 {
            break;
        }
        heap[hole] = heap[parent];
        hole = parent;
    }
    heap[hole] = value;
}

fn sink(heap: &mut [Scored], value: Scored) {
    let length = heap.len();
    let mut hole = 0;
    while hole < (length - 1) / 2 {
        let mut child = 2 * hole + 2;
        if heap[child].0 > heap[child - 1].0 {
            child -= 1;
        }
        heap[hole] = heap[child];
        hole = child;
    }
    if length.is_multiple_of(2) && hole == (length - 2) / 2 {
        let child = 2 * hole + 1;
        heap[hole] = heap[child];
        hole = child;
    }
    rise(heap, hole, 0, value);
}
