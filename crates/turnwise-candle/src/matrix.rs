//! Matrix products on slices: the one door to `gemm`.

use gemm::Parallelism;

/// A matrix in a slice: element `(i, j)` is at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    shape: Shape,
}

/// A matrix that can be written.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a> {
    data: &'a mut [f32],
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl Shape {
    /// # Panics
    /// When an element would lie outside a slice of `length`.
    fn checked(self, length: usize) -> Self {
        if self.rows > 0 && self.columns > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
            assert!(last < length, "{self:?} does not fit {length} values");
        }
        self
    }
}

impl<'a> Matrix<'a> {
    /// Rows one after another, `columns` wide.
    pub(crate) fn rows(data: &'a [f32], columns: usize) -> Self {
        Self::strided(data, data.len() / columns, columns, columns)
    }

    /// Rows that start `stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        let shape = Shape { rows, columns, row_stride: stride, column_stride: 1 };
        Self { data, shape: shape.checked(data.len()) }
    }

    pub(crate) fn transposed(self) -> Self {
        let Shape { rows, columns, row_stride, column_stride } = self.shape;
        let shape = Shape {
            rows: columns,
            columns: rows,
            row_stride: column_stride,
            column_stride: row_stride,
        };
        Self { shape, ..self }
    }
}

impl<'a> MatrixMut<'a> {
    /// Rows one after another, `columns` wide.
    pub(crate) fn rows(data: &'a mut [f32], columns: usize) -> Self {
        let rows = data.len() / columns;
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that start `stride` apart.
    ///
    /// # Panics
    /// When rows overlap.
    pub(crate) fn strided(data: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(stride >= columns, "rows that are written must not overlap");
        let shape =
            Shape { rows, columns, row_stride: stride, column_stride: 1 }.checked(data.len());
        Self { data, shape }
    }
}

/// What becomes of the numbers that are already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// They are overwritten, and may be anything.
    Replace,
    /// The product is added to them.
    Add,
}

/// Who computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The caller alone.
    One,
    /// The caller's rayon pool, for products large enough to gain from it.
    Pool,
}

/// `target = scale * a b`, or `target += scale * a b`.
///
/// # Panics
/// When the shapes do not fit.
pub(crate) fn multiply(
    target: &mut MatrixMut<'_>,
    write: Write,
    scale: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    threads: Threads,
) {
    assert_eq!(
        (target.shape.rows, target.shape.columns, a.shape.columns),
        (a.shape.rows, b.shape.columns, b.shape.rows),
        "matrix shapes must fit"
    );
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::Pool => Parallelism::Rayon(0),
    };
    let stride = usize::cast_signed;
    // SAFETY: `Shape::checked` made sure that every element of the three matrices lies inside its slice. The target is
    // borrowed mutably, so that it overlaps neither `a` nor `b`, and its rows do not overlap each other.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            target.shape.rows,
            target.shape.columns,
            a.shape.columns,
            target.data.as_mut_ptr(),
            stride(target.shape.column_stride),
            stride(target.shape.row_stride),
            write == Write::Add,
            a.data.as_ptr(),
            stride(a.shape.column_stride),
            stride(a.shape.row_stride),
            b.data.as_ptr(),
            stride(b.shape.column_stride),
            stride(b.shape.row_stride),
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
