use super::{assert_close, on_threads, random};
use p2ptrain_kernels::op::gelu::{self, Form};
use p2ptrain_kernels::op::matmul::{self, Matrix, Scratch, Size, Store};
use p2ptrain_kernels::primitive::pool::Pool;

type Product = fn(&Pool, &mut Scratch, Size, Matrix<'_>, Matrix<'_>, &mut [f32], Store<'_>);

const SIZES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (0, 3, 2),
    (3, 0, 2),
    (3, 2, 0),
    (1, 33, 1),
    (14, 32, 16),
    (15, 31, 17),
    (13, 65, 3),
    (112, 64, 512),
    (113, 33, 513),
    (257, 7, 1030),
    (5, 300, 40),
    (1700, 9, 5),
    (40, 129, 2051),
];

/// The plain product, with a bound on the error of any order of summation.
fn reference(size: Size, a: Matrix<'_>, b: Matrix<'_>, round: fn(f32) -> f32) -> Vec<f32> {
    let Size { m, n, k } = size;
    let at = |x: Matrix<'_>, row: usize, column: usize, rows: usize, columns: usize| {
        let index = if x.transposed { column * rows + row } else { row * columns + column };
        f64::from(round(x.data[index]))
    };
    let mut c = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            c.push((0..k).map(|p| at(a, i, p, m, k) * at(b, p, j, k, n)).sum::<f64>() as f32);
        }
    }
    c
}

fn check(product: Product, round: fn(f32) -> f32) {
    for (m, n, k) in SIZES {
        let size = Size { m, n, k };
        let (a, b) = (random(1, m * k), random(2, k * n));
        for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
            let a = Matrix { data: &a, transposed: ta };
            let b = Matrix { data: &b, transposed: tb };
            let expected = reference(size, a, b, round);
            let got = on_threads(|pool| {
                let mut c = vec![f32::NAN; m * n];
                product(pool, &mut Scratch::default(), size, a, b, &mut c, Store::Set);
                c
            });
            let tolerance = 1e-6 * (k as f32).sqrt().max(4.0);
            assert_close(&format!("{size:?} {ta} {tb}"), &got, &expected, tolerance);
        }
    }
}

#[test]
fn f32_products_of_any_shape_and_layout_match_the_plain_product() {
    check(matmul::f32, |x| x);
}

#[test]
fn bf16_products_are_those_of_rounded_operands() {
    check(matmul::bf16, |x| half::bf16::from_f32(x).to_f32());
}

#[test]
fn a_scratch_is_used_again_for_products_of_other_sizes() {
    let pool = Pool::new(2);
    let mut scratch = Scratch::default();
    for (m, n, k) in [(300, 200, 100), (5, 6, 7), (200, 300, 700)] {
        let size = Size { m, n, k };
        let (a, b) = (random(1, m * k), random(2, k * n));
        let (a, b) = (Matrix::plain(&a), Matrix::plain(&b));
        let mut c = vec![0.0; m * n];
        matmul::f32(&pool, &mut scratch, size, a, b, &mut c, Store::Set);
        assert_close("again", &c, &reference(size, a, b, |x| x), 3e-5);
    }
}

#[test]
fn stores_add_bias_activate_and_scale() {
    for (m, n, k) in [(1, 1, 1), (37, 45, 20), (230, 70, 1100)] {
        let size = Size { m, n, k };
        let (a, b) = (random(1, m * k), random(2, k * n));
        let (a, b) = (Matrix::plain(&a), Matrix::plain(&b));
        let (bias, x) = (random(3, n), random(4, m * n));
        let product = reference(size, a, b, |x| x);
        let map = |f: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
            product.iter().enumerate().map(|(index, &p)| f(index, p)).collect()
        };
        let compute = |store: fn(&'static [f32], &'static [f32]) -> Store<'static>| {
            let bias: &'static [f32] = bias.clone().leak();
            let x: &'static [f32] = x.clone().leak();
            on_threads(|pool| {
                let mut c = x.to_vec();
                matmul::f32(pool, &mut Scratch::default(), size, a, b, &mut c, store(bias, x));
                c
            })
        };
        let tolerance = 1e-6 * (k as f32).sqrt().max(4.0);
        let got = compute(|_, _| Store::Add);
        assert_close("add", &got, &map(&|i, p| p + x[i]), tolerance);
        let got = compute(|bias, _| Store::Bias(bias));
        assert_close("bias", &got, &map(&|i, p| p + bias[i % n]), tolerance);
        let got = compute(|bias, x| Store::Residual { bias: Some(bias), residual: x });
        assert_close("residual", &got, &map(&|i, p| p + bias[i % n] + x[i]), tolerance);
        let got = compute(|_, x| Store::Residual { bias: None, residual: x });
        assert_close("residual only", &got, &map(&|i, p| p + x[i]), tolerance);
        for form in [Form::Exact, Form::Tanh] {
            let pool = Pool::new(2);
            let mut expected = product.clone();
            let ones = vec![1.0; m * n];
            gelu::bwd(&pool, form, &x, &ones, &mut expected);
            expected.iter_mut().zip(&product).for_each(|(d, p)| *d *= p);
            let mut c = vec![0.0; m * n];
            let store = Store::GeluGrad { x: &x, form };
            matmul::f32(&pool, &mut Scratch::default(), size, a, b, &mut c, store);
            assert_close("gelu gradient", &c, &expected, tolerance);
            let mut activated = vec![0.0; m * n];
            let store = Store::Gelu { bias: Some(&bias), activated: &mut activated, form };
            matmul::f32(&pool, &mut Scratch::default(), size, a, b, &mut c, store);
            let before = map(&|i, p| p + bias[i % n]);
            assert_close("before gelu", &c, &before, tolerance);
            let mut expected = vec![0.0; m * n];
            gelu::fwd(&pool, form, &before, &mut expected);
            assert_close("gelu", &activated, &expected, 2.0 * tolerance);
        }
    }
}
