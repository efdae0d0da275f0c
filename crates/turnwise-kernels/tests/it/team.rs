//! A thread team under load: all shared data is written once and visible to the caller.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use turnwise_kernels::team::{Team, WriteOnceRows};

/// Rounds of a test; miri is some thousand times slower.
const ROUNDS: usize = if cfg!(miri) { 3 } else { 3000 };

const MEMBERS: [usize; 4] = [1, 2, 3, 8];

#[test]
fn chunks_are_written_by_one_member_and_seen_by_the_caller() {
    for members in MEMBERS {
        let mut team = Team::new(members, "stress").unwrap();
        let mut items = vec![0_usize; 101];
        for round in 0..ROUNDS {
            let length = round % 13 + 1;
            team.chunks(&mut items, length, |_, index, chunk| {
                for (offset, item) in chunk.iter_mut().enumerate() {
                    // Not atomic: two writers would lose updates here, and cause a data race under miri.
                    *item += index * length + offset;
                }
            });
            assert!(items.iter().enumerate().all(|(i, item)| *item == i * (round + 1)));
        }
    }
}

#[test]
fn rows_are_written_once() {
    let mut team = Team::new(3, "stress").unwrap();
    for _ in 0..ROUNDS {
        let mut data = vec![0.0; 4 * 20];
        let rows = WriteOnceRows::new(&mut data, 4);
        team.each(20, |_, row| rows.write(row, &[row as f32; 4]));
        let again = catch_unwind(AssertUnwindSafe(|| rows.write(7, &[0.0; 4])));
        assert!(again.is_err(), "a second write is refused");
        drop(rows);
        assert!(data.chunks(4).enumerate().all(|(row, numbers)| numbers == [row as f32; 4]));
    }
}

/// Regions that borrow from the caller's stack end before it returns, whether they are short, long, empty or panic.
#[test]
fn a_region_ends_before_what_it_borrows() {
    let mut team = Team::new(4, "stress").unwrap();
    for round in 0..ROUNDS {
        let count = AtomicUsize::new(0);
        let n_pieces = round % 7 * 5;
        let call = || {
            team.each(n_pieces, |_, piece| {
                assert_ne!((round % 11, piece), (3, 9), "on purpose");
                count.fetch_add(1, Ordering::Relaxed);
            });
        };
        let panicked = catch_unwind(AssertUnwindSafe(call)).is_err();
        assert_eq!(panicked, round % 11 == 3 && n_pieces > 9);
        if !panicked {
            assert_eq!(count.into_inner(), n_pieces);
        }
    }
}

/// Helpers fall asleep after some 300 microseconds: here many do so just when a region opens or the team ends.
#[test]
fn helpers_that_fall_asleep_miss_no_region_and_no_end() {
    for round in 0..=ROUNDS / 30 {
        let mut team = Team::new(4, "stress").unwrap();
        for pause in 0..5 {
            std::thread::sleep(Duration::from_micros(250 + 25 * ((round + pause) % 5) as u64));
            let count = AtomicUsize::new(0);
            team.each(8, |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 8);
        }
    }
}
