//! What the search costs on a table of 21,600 leaves: `cargo bench -p tidegate-engine --bench diagnose`.

use divan::{Bencher, black_box};
use tidegate_engine::diagnose::{Table, TableBuilder, diagnose};
use tidegate_engine::traffic::Random;

fn main() {
    divan::main();
}

/// A table of 6 × 36 × 10 × 10 leaves, forecast within 1 %, in which everything that `hit` says fell
/// by half.
fn table(hit: impl Fn([u64; 4]) -> bool) -> Table {
    let mut random = Random::from_seed(1);
    let mut table = TableBuilder::new(["a", "b", "c", "d"]).expect("attributes");
    for leaf in 0..21_600_u64 {
        let values = [leaf % 6, leaf / 6 % 36, leaf / 216 % 10, leaf / 2160];
        let size = (random.bits() % 10_000) as f64 / 10.0;
        let error = 0.98 + (random.bits() % 400) as f64 / 1e4;
        let observed = if hit(values) { 0.5 * size } else { size };
        let names = values.map(|value| value.to_string());
        table
            .add(names.iter().map(String::as_str), observed, size * error)
            .expect("a row");
    }
    table.finish()
}

#[divan::bench]
fn nothing_changed(bencher: Bencher<'_, '_>) {
    let table = table(|_| false);
    bencher.bench(|| diagnose(black_box(&table)));
}

#[divan::bench]
fn three_causes_of_one_value(bencher: Bencher<'_, '_>) {
    let table = table(|[a, b, c, _]| a == 3 || b == 7 || c == 2);
    bencher.bench(|| diagnose(black_box(&table)));
}

#[divan::bench]
fn three_causes_of_three_values(bencher: Bencher<'_, '_>) {
    let table = table(|[a, b, c, d]| {
        (a, b, c) == (1, 2, 3) || (b, c, d) == (20, 4, 4) || (a, c, d) == (5, 6, 7)
    });
    bencher.bench(|| diagnose(black_box(&table)));
}
