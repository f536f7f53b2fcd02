//! One unit of work: the steps of a program over its tiles, as loops that vectorise.

use super::super::buffer::{Buf, round_in_place};
use super::super::cpu::{Fma, LINE, multiversion, prefetch};
use super::super::math;
use super::super::share::Shared;
use super::TileArgs;
use super::lower::{Class, MAX_AXES, MAX_IN_PLACE, Place, Program, Step, Store, Unit, Walk, is_dear};
use crate::random;
use kiln_compiler::ops::Scalar;
use std::ops::Range;

// Elements of the pieces between which a dear step asks for the next tile.
const AHEAD: usize = 64;
// Chains of a row reduction; then they are combined in a tree.
const LANES: usize = 32;

multiversion! {
    /// Executes one unit; `partials` receives its part of the column sums, `in_place` has the bits of [`Program::in_place`].
    pub fn unit(
        p: &Program, args: &TileArgs<'_>, in_place: u32, unit: Unit, memory: Shared<f32>, partials: Shared<f32>,
    ) = unit_body
}

#[inline(always)]
fn unit_body<F: Fma>(
    p: &Program,
    args: &TileArgs<'_>,
    in_place: u32,
    unit: Unit,
    memory: Shared<f32>,
    partials: Shared<f32>,
) {
    let mut cx = Tile {
        p,
        args,
        in_place,
        starts: [0; MAX_IN_PLACE],
        memory,
        outer: [0; MAX_AXES],
        first_row: [0; MAX_AXES],
        row: unit.rows.start,
        rows: 1,
        col: unit.col,
        cols: unit.cols,
    };
    digits(unit.outer, &p.outer, &mut cx.outer);
    let mut once = true;
    let mut row = unit.rows.start;
    while once || row < unit.rows.end {
        // What no row changes comes first, then the tiles; one loop, so that the steps are compiled once.
        let steps = if once { &p.once } else { &p.steps };
        if !once {
            cx.row = row;
            cx.rows = p.tile_rows.min(unit.rows.end - row);
            digits(row, &p.rows, &mut cx.first_row);
            cx.find_starts();
        }
        for (dst, step) in steps {
            cx.step::<F>(*dst, step);
        }
        if !once {
            for (reg, output, store) in &p.stores {
                if cx.place_of(*reg).map(|p| p.0) != Some(Place::Output(*output)) {
                    cx.store(*reg, *output, store);
                }
            }
            for (i, sum) in p.column_sums.iter().enumerate() {
                let at = (i * p.chunks() + unit.chunk) * p.cols;
                // SAFETY: only this unit uses this chunk's sums.
                let sums = unsafe { partials.slice(at, p.cols) };
                cx.add_rows(sum.source, sums, row == unit.rows.start);
            }
            row += cx.rows;
        }
        once = false;
    }
}

/// Index tuple of position `n` in row-major order.
#[inline(always)]
fn digits(mut n: usize, sizes: &[usize], out: &mut [usize; MAX_AXES]) {
    for (d, &size) in sizes.iter().enumerate().rev() {
        out[d] = n % size;
        n /= size;
    }
}

/// A tile and where it lies in the domain.
struct Tile<'a> {
    p: &'a Program,
    args: &'a TileArgs<'a>,
    /// Bits of the registers that lie in buffers, and where this tile of each starts.
    in_place: u32,
    starts: [usize; MAX_IN_PLACE],
    memory: Shared<f32>,
    outer: [usize; MAX_AXES],
    first_row: [usize; MAX_AXES],
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

/// A part of a tile's columns, and where it lies in which run.
struct Piece {
    c: usize,
    n: usize,
    run: usize,
    inside: usize,
}

/// A register's elements in this tile.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    class: Class,
    cols: usize,
}

impl<'a> View<'a> {
    /// Element (r, c).
    #[inline(always)]
    fn at(&self, r: usize, c: usize) -> f32 {
        let r = if self.class.rows { r } else { 0 };
        if self.class.cols { self.data[r * self.cols + c] } else { self.data[r] }
    }

    /// Row `r` if the register spans columns.
    #[inline(always)]
    fn row(&self, r: usize) -> &'a [f32] {
        let r = if self.class.rows { r } else { 0 };
        &self.data[r * self.cols..(r + 1) * self.cols]
    }
}

impl<'a> Tile<'a> {
    #[inline(always)]
    fn len(&self, class: Class) -> usize {
        (if class.rows { self.rows } else { 1 }) * (if class.cols { self.cols } else { 1 })
    }

    /// Whether the register with this number among those in buffers lies in its buffer in this run.
    #[inline(always)]
    fn lies_there(&self, i: usize) -> bool {
        self.in_place >> i & 1 == 1
    }

    /// Where a register lies, if it lies in a buffer, and its first element there.
    #[inline(always)]
    fn place_of(&self, reg: usize) -> Option<(Place, usize)> {
        let i = self.p.registers[reg].in_place.filter(|&i| self.lies_there(i))?;
        Some((self.p.in_place[i].place, self.starts[i]))
    }

    #[inline(always)]
    fn buffer(&self, place: Place) -> &'a Buf {
        match place {
            Place::Input(k) => &self.args.inputs[k],
            Place::Output(k) => &self.args.outputs[k],
        }
    }

    /// Where the registers that lie in buffers start in this tile.
    #[inline(always)]
    fn find_starts(&mut self) {
        for (i, in_place) in self.p.in_place.iter().enumerate() {
            if !self.lies_there(i) {
                continue;
            }
            let walk = &in_place.walk;
            let rows = walk.rows.iter().zip(&self.first_row).map(|(s, &i)| s * i as isize).sum::<isize>();
            self.starts[i] = (self.outer_offset(walk) + rows + walk.runs[0] + self.col as isize) as usize;
        }
    }

    /// Asks for elements `from..from + n` of the next tile of every register that lies in a buffer.
    #[inline(always)]
    fn ask_for_next(&self, from: usize, n: usize) {
        let tile = self.rows * self.cols;
        for (i, in_place) in self.p.in_place.iter().enumerate().filter(|(i, _)| self.lies_there(*i)) {
            let first = self.buffer(in_place.place).as_ptr().cast::<f32>().wrapping_add(self.starts[i] + tile + from);
            (0..n).step_by(LINE).for_each(|at| prefetch(first.wrapping_add(at)));
        }
    }

    #[inline(always)]
    fn view(&self, reg: usize) -> View<'a> {
        let r = self.p.registers[reg];
        let len = self.len(r.class);
        let data = match self.place_of(reg) {
            Some((place, start)) => self.buffer(place).f32s(start, len),
            // SAFETY: the planner gives no step a result that shares memory with its operands, and a worker runs one step at a time.
            None => unsafe { self.memory.read(r.at, len) },
        };
        View { data, class: r.class, cols: self.cols }
    }

    /// Where the result of a step belongs; the step that loads an operand which is read where it lies has none.
    #[inline(always)]
    fn result(&self, reg: usize) -> Option<(&'a mut [f32], Class)> {
        let r = self.p.registers[reg];
        let len = self.len(r.class);
        let data = match self.place_of(reg) {
            Some((Place::Input(_), _)) => return None,
            Some((place, start)) => self.buffer(place).f32s_mut(start, len),
            // SAFETY: as for `view`.
            None => unsafe { self.memory.slice(r.at, len) },
        };
        Some((data, r.class))
    }

    /// One of three rows of scratch.
    #[inline(always)]
    fn scratch(&self, i: usize) -> &'a mut [f32] {
        let pitch = self.p.tile_cols.next_multiple_of(16);
        // SAFETY: no register lies there, and each step uses each row of scratch once.
        unsafe { self.memory.slice(self.p.scratch_at + i * pitch, self.cols) }
    }

    #[inline(always)]
    fn step<F: Fma>(&self, dst: usize, step: &Step) {
        let Some((out, class)) = self.result(dst) else { return };
        match step {
            Step::Load { input, walk } => self.load(self.args.inputs[*input], walk, out, class),
            Step::Const(x) => out.fill(*x),
            Step::Index(walk) => self.for_runs(walk, class, |i, n, start, stride| {
                for (k, o) in out[i..i + n].iter_mut().enumerate() {
                    *o = (start + k as isize * stride) as f32;
                }
            }),
            // While dear values are computed, memory has time for what the next tile needs.
            Step::Unary(s, a) if self.in_place != 0 && is_dear(*s) => {
                for (i, (out, a)) in out.chunks_mut(AHEAD).zip(self.view(*a).data.chunks(AHEAD)).enumerate() {
                    self.ask_for_next(i * AHEAD, out.len());
                    unary::<F>(*s, out, a);
                }
            }
            Step::Unary(s, a) => unary::<F>(*s, out, self.view(*a).data),
            Step::Binary(s, a, b) => self.binary(*s, out, class, self.view(*a), self.view(*b)),
            Step::CompareInts(s, a, b) => self.compare_ints(*s, out, class, self.view(*a), self.view(*b)),
            Step::ToFloat(a) => map1(out, self.view(*a).data, |x| x.to_bits() as i32 as f32),
            Step::Select(m, a, b) => self.select(out, class, [*m, *a, *b].map(|r| self.view(r))),
            Step::Round(dtype, a) => {
                out.copy_from_slice(self.view(*a).data);
                round_in_place(*dtype, out);
            }
            Step::Uniform { stream, walk } => {
                let s = self.args.streams[*stream];
                self.for_runs(walk, class, |i, n, start, stride| {
                    let out = &mut out[i..i + n];
                    let first = s.offset.wrapping_add(start as u64);
                    if stride == 1 {
                        uniform_run(s.key, self.args.step, first, out);
                    } else {
                        for (k, o) in out.iter_mut().enumerate() {
                            let index = first.wrapping_add((k as isize * stride) as u64);
                            *o = random::uniform(s.key, index, self.args.step);
                        }
                    }
                });
            }
            Step::RowSum(a) => self.reduce(out, self.view(*a), row_sum, |x, n| x * n as f32),
            Step::RowMax(a) => {
                self.reduce(out, self.view(*a), row_max, |x, n| if n == 0 { f32::NEG_INFINITY } else { x });
            }
            Step::SegmentSum { values, order, starts, ends } => {
                let [values, order, starts, ends] = [*values, *order, *starts, *ends].map(|i| self.args.inputs[i]);
                for r in 0..self.rows {
                    let row = &mut out[r * self.cols..(r + 1) * self.cols];
                    segment_sum(
                        row,
                        values,
                        order,
                        starts.i32s(self.row + r, 1)[0],
                        ends.i32s(self.row + r, 1)[0],
                        self.scratch(0),
                    );
                }
            }
        }
    }

    /// Offset of the outer index.
    #[inline(always)]
    fn outer_offset(&self, walk: &Walk) -> isize {
        walk.outer.iter().zip(&self.outer).map(|(s, &i)| s * i as isize).sum::<isize>() + walk.base
    }

    /// Calls `f(row, offset)` for the first `rows` rows of the tile.
    #[inline(always)]
    fn for_rows(&self, walk: &Walk, rows: usize, mut f: impl FnMut(usize, isize, &[usize; MAX_AXES])) {
        let mut digits = self.first_row;
        let mut at = self.outer_offset(walk);
        at += walk.rows.iter().zip(&digits).map(|(s, &i)| s * i as isize).sum::<isize>();
        for r in 0..rows {
            f(r, at, &digits);
            for d in (0..self.p.rows.len()).rev() {
                digits[d] += 1;
                at += walk.rows[d];
                if digits[d] < self.p.rows[d] {
                    break;
                }
                at -= walk.rows[d] * digits[d] as isize;
                digits[d] = 0;
            }
        }
    }

    /// The runs that the columns of this tile meet.
    #[inline(always)]
    fn pieces(&self, walk: &Walk) -> impl Iterator<Item = Piece> + use<> {
        let (len, cols) = (walk.run_len, self.cols);
        let (mut run, mut inside, mut c) = (self.col / len.max(1), self.col % len.max(1), 0);
        std::iter::from_fn(move || {
            let piece = Piece { c, n: (len - inside).min(cols - c), run, inside };
            (c < cols).then(|| {
                (c, run, inside) = (c + piece.n, run + 1, 0);
                piece
            })
        })
    }

    /// Calls `f(position in the register, length, offset, stride)` for every run of a register of this class.
    #[inline(always)]
    fn for_runs(&self, walk: &Walk, class: Class, mut f: impl FnMut(usize, usize, isize, isize)) {
        let rows = if class.rows { self.rows } else { 1 };
        self.for_rows(walk, rows, |r, at, _| {
            if !class.cols {
                f(r, 1, at + walk.runs[0], 1);
                return;
            }
            for Piece { c, n, run, inside } in self.pieces(walk) {
                f(r * self.cols + c, n, at + walk.runs[run] + inside as isize * walk.step, walk.step);
            }
        });
    }

    #[inline(always)]
    fn load(&self, buf: Buf, walk: &Walk, out: &mut [f32], class: Class) {
        if !walk.values.is_empty() {
            return self.load_by_value(buf, walk, out, class);
        }
        let dense = class.rows && class.cols && walk.runs.len() == 1 && walk.step == 1;
        let one_axis = match walk.rows.as_slice() {
            [] => true,
            [s] => *s == walk.run_len as isize && self.cols == walk.run_len,
            _ => false,
        };
        if dense && one_axis {
            let mut start = 0;
            self.for_rows(walk, 1, |_, at, _| start = at + walk.runs[0] + self.col as isize);
            return buf.load(start as usize, out);
        }
        self.for_runs(walk, class, |i, n, at, stride| {
            if n > 0 {
                buf.load_strided(at as usize, stride, &mut out[i..i + n]);
            }
        });
    }

    /// Loads with indices from registers; an index outside of the buffer reads zero, as on every device.
    #[inline(always)]
    fn load_by_value(&self, buf: Buf, walk: &Walk, out: &mut [f32], class: Class) {
        let along_columns = walk.values.iter().any(|v| self.p.registers[v.0].class.cols);
        let offset = |r: usize, c: usize| -> Option<isize> {
            walk.values.iter().try_fold(0, |sum, &(reg, stride, limit)| {
                // A negative number is a large one without its sign.
                let index = self.view(reg).at(r, c).to_bits() as usize;
                (index < limit).then_some(sum + index as isize * stride)
            })
        };
        self.for_runs(walk, class, |i, n, at, stride| {
            let (r, c) = if class.cols { (i / self.cols, i % self.cols) } else { (i, 0) };
            let out = &mut out[i..i + n];
            if along_columns {
                for (k, o) in out.iter_mut().enumerate() {
                    let here = at + k as isize * stride;
                    *o = offset(r, c + k).map_or(0.0, |by| buf.get((here + by) as usize));
                }
            } else if n > 0 {
                match offset(r, c) {
                    Some(by) => buf.load_strided((at + by) as usize, stride, out),
                    None => out.fill(0.0),
                }
            }
        });
    }

    #[inline(always)]
    fn map2(&self, out: &mut [f32], class: Class, a: View<'_>, b: View<'_>, f: impl Fn(f32, f32) -> f32 + Copy) {
        if a.class == class && b.class == class {
            for ((o, &a), &b) in out.iter_mut().zip(a.data).zip(b.data) {
                *o = f(a, b);
            }
            return;
        }
        if !class.cols {
            for (r, o) in out.iter_mut().enumerate() {
                *o = f(a.at(r, 0), b.at(r, 0));
            }
            return;
        }
        let rows = if class.rows { self.rows } else { 1 };
        for r in 0..rows {
            let out = &mut out[r * self.cols..(r + 1) * self.cols];
            match (a.class.cols, b.class.cols) {
                (true, true) => {
                    for ((o, &a), &b) in out.iter_mut().zip(a.row(r)).zip(b.row(r)) {
                        *o = f(a, b);
                    }
                }
                (true, false) => {
                    let b = b.at(r, 0);
                    for (o, &a) in out.iter_mut().zip(a.row(r)) {
                        *o = f(a, b);
                    }
                }
                (false, _) => {
                    let x = a.at(r, 0);
                    if b.class.cols {
                        for (o, &b) in out.iter_mut().zip(b.row(r)) {
                            *o = f(x, b);
                        }
                    } else {
                        out.fill(f(x, b.at(r, 0)));
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn binary(&self, s: Scalar, out: &mut [f32], class: Class, a: View<'_>, b: View<'_>) {
        match s {
            Scalar::Add => self.map2(out, class, a, b, |a, b| a + b),
            Scalar::Sub => self.map2(out, class, a, b, |a, b| a - b),
            Scalar::Mul => self.map2(out, class, a, b, |a, b| a * b),
            Scalar::Div => self.map2(out, class, a, b, |a, b| a / b),
            Scalar::Max => self.map2(out, class, a, b, max),
            Scalar::Min => self.map2(out, class, a, b, |a, b| -max(-a, -b)),
            Scalar::Lt => self.map2(out, class, a, b, |a, b| mask(a < b)),
            Scalar::Le => self.map2(out, class, a, b, |a, b| mask(a <= b)),
            Scalar::Gt => self.map2(out, class, a, b, |a, b| mask(a > b)),
            Scalar::Ge => self.map2(out, class, a, b, |a, b| mask(a >= b)),
            Scalar::Eq => self.map2(out, class, a, b, |a, b| mask(a == b)),
            Scalar::Ne => self.map2(out, class, a, b, |a, b| mask(a != b)),
            one_operand => panic!("{one_operand:?} does not take two operands"),
        }
    }

    #[inline(always)]
    fn compare_ints(&self, s: Scalar, out: &mut [f32], class: Class, a: View<'_>, b: View<'_>) {
        let int = |x: f32| x.to_bits() as i32;
        match s {
            Scalar::Lt => self.map2(out, class, a, b, |a, b| mask(int(a) < int(b))),
            Scalar::Le => self.map2(out, class, a, b, |a, b| mask(int(a) <= int(b))),
            Scalar::Gt => self.map2(out, class, a, b, |a, b| mask(int(a) > int(b))),
            Scalar::Ge => self.map2(out, class, a, b, |a, b| mask(int(a) >= int(b))),
            Scalar::Eq => self.map2(out, class, a, b, |a, b| mask(int(a) == int(b))),
            Scalar::Ne => self.map2(out, class, a, b, |a, b| mask(int(a) != int(b))),
            other => panic!("{other:?} is no comparison"),
        }
    }

    #[inline(always)]
    fn select(&self, out: &mut [f32], class: Class, operands: [View<'_>; 3]) {
        let pick = |m: f32, a: f32, b: f32| if m != 0.0 { a } else { b };
        let [m, a, b] = operands;
        if operands.iter().all(|v| v.class == class) {
            for (((o, &m), &a), &b) in out.iter_mut().zip(m.data).zip(a.data).zip(b.data) {
                *o = pick(m, a, b);
            }
            return;
        }
        if !class.cols {
            for (r, o) in out.iter_mut().enumerate() {
                *o = pick(m.at(r, 0), a.at(r, 0), b.at(r, 0));
            }
            return;
        }
        let rows = if class.rows { self.rows } else { 1 };
        let (sm, sa, sb) = (self.scratch(0), self.scratch(1), self.scratch(2));
        for r in 0..rows {
            let (m, a, b) = (spread_row(m, r, &mut *sm), spread_row(a, r, &mut *sa), spread_row(b, r, &mut *sb));
            let out = &mut out[r * self.cols..(r + 1) * self.cols];
            for (((o, &m), &a), &b) in out.iter_mut().zip(m).zip(a).zip(b) {
                *o = pick(m, a, b);
            }
        }
    }

    /// Reduces each row of `a`; one element stands for all columns where `a` spans none.
    #[inline(always)]
    fn reduce(&self, out: &mut [f32], a: View<'_>, f: impl Fn(&[f32]) -> f32, constant: impl Fn(f32, usize) -> f32) {
        for (r, o) in out.iter_mut().enumerate() {
            *o = if a.class.cols { f(a.row(r)) } else { constant(a.at(r, 0), self.cols) };
        }
    }

    #[inline(always)]
    fn store(&self, reg: usize, output: usize, store: &Store) {
        let buf = self.args.outputs[output];
        let add = self.args.accumulate.get(output) == Some(&true);
        let lacks = |lacks: &[bool], index: &[usize; MAX_AXES]| lacks.iter().zip(index).any(|(&l, &i)| l && i > 0);
        if lacks(&store.lacks_outer, &self.outer) || (store.lacks_run && self.col > 0 && store.walk.runs.len() == 1) {
            return;
        }
        let (v, walk) = (self.view(reg), &store.walk);
        let put = |at: isize, stride: isize, x: &[f32]| match (add, stride) {
            (false, _) => buf.store_strided(at as usize, stride, x),
            (true, 1) => buf.add(at as usize, x),
            (true, _) => {
                for (k, &x) in x.iter().enumerate() {
                    let at = (at + k as isize * stride) as usize;
                    buf.set(at, buf.get(at) + x);
                }
            }
        };
        let dense = walk.runs.len() == 1 && walk.step == 1 && !store.lacks_run && v.class.rows && v.class.cols;
        let one_axis = match walk.rows.as_slice() {
            [] => true,
            [s] => *s == walk.run_len as isize && self.cols == walk.run_len && !store.lacks_rows[0],
            _ => false,
        };
        if dense && one_axis {
            let mut start = 0;
            self.for_rows(walk, 1, |_, at, _| start = at + walk.runs[0] + self.col as isize);
            return put(start, 1, v.data);
        }
        self.for_rows(walk, self.rows, |r, at, index| {
            if lacks(&store.lacks_rows, index) {
                return;
            }
            for Piece { c, n, run, inside } in self.pieces(walk) {
                let kept = if store.lacks_run { 1 } else { n };
                if store.keeps_run[run] && !(store.lacks_run && inside > 0) {
                    let to = at + walk.runs[run] + inside as isize * walk.step;
                    if v.class.cols {
                        put(to, walk.step, &v.row(r)[c..c + kept]);
                    } else if kept == 1 {
                        put(to, 1, &[v.at(r, 0)]);
                    } else {
                        let row = &mut self.scratch(0)[..kept];
                        row.fill(v.at(r, 0));
                        put(to, walk.step, row);
                    }
                }
            }
        });
    }

    /// Adds the rows of a register, one after the other.
    #[inline(always)]
    fn add_rows(&self, reg: usize, sums: &mut [f32], first: bool) {
        let v = self.view(reg);
        if first {
            sums.fill(0.0);
        }
        for r in 0..self.rows {
            if v.class.cols {
                for (s, &x) in sums.iter_mut().zip(v.row(r)) {
                    *s += x;
                }
            } else {
                let x = v.at(r, 0);
                sums.iter_mut().for_each(|s| *s += x);
            }
        }
    }
}

#[inline(always)]
fn mask(b: bool) -> f32 {
    if b { 1.0 } else { 0.0 }
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// Row `r` of a view, spread over the columns where it spans none.
#[inline(always)]
fn spread_row<'a>(v: View<'a>, r: usize, scratch: &'a mut [f32]) -> &'a [f32] {
    if v.class.cols {
        return v.row(r);
    }
    scratch.fill(v.at(r, 0));
    scratch
}

#[inline(always)]
fn map1(out: &mut [f32], a: &[f32], f: impl Fn(f32) -> f32) {
    for (o, &a) in out.iter_mut().zip(a) {
        *o = f(a);
    }
}

#[inline(always)]
fn unary<F: Fma>(s: Scalar, out: &mut [f32], a: &[f32]) {
    match s {
        Scalar::Neg => map1(out, a, |x| -x),
        Scalar::Exp => map1(out, a, math::exp::<F>),
        Scalar::Log => map1(out, a, math::log::<F>),
        Scalar::Sqrt => map1(out, a, f32::sqrt),
        Scalar::Rsqrt => map1(out, a, |x| 1.0 / x.sqrt()),
        Scalar::Recip => map1(out, a, |x| 1.0 / x),
        Scalar::Sin => {
            map1(out, a, math::sin);
            far(out, a, math::far_sin);
        }
        Scalar::Cos => {
            map1(out, a, math::cos);
            far(out, a, math::far_cos);
        }
        Scalar::Tanh => map1(out, a, math::tanh::<F>),
        Scalar::Erf => map1(out, a, math::erf::<F>),
        Scalar::Logistic => map1(out, a, math::logistic::<F>),
        Scalar::Abs => map1(out, a, f32::abs),
        Scalar::Sign => map1(out, a, |x| if x == 0.0 || x.is_nan() { x } else { 1.0f32.copysign(x) }),
        two_operands => panic!("{two_operands:?} does not take one operand"),
    }
}

/// Repairs the elements whose arguments are too large for the fast path.
#[inline(always)]
fn far(out: &mut [f32], a: &[f32], f: impl Fn(f32) -> f32) {
    if a.iter().fold(false, |any, &x| any | !math::near(x)) {
        for (o, &x) in out.iter_mut().zip(a).filter(|(_, x)| !math::near(**x)) {
            *o = f(x);
        }
    }
}

#[inline(always)]
fn lanes(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    let mut acc = [start; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for l in 0..LANES {
            acc[l] = f(acc[l], chunk[l]);
        }
    }
    for (a, &x) in acc.iter_mut().zip(chunks.remainder()) {
        *a = f(*a, x);
    }
    math::tree(acc, f)
}

#[inline(always)]
fn row_sum(x: &[f32]) -> f32 {
    lanes(x, 0.0, |a, b| a + b)
}

#[inline(always)]
fn row_max(x: &[f32]) -> f32 {
    lanes(x, f32::NEG_INFINITY, max)
}

/// Σ over j in start..end of row order[j] of `values`.
#[inline(always)]
fn segment_sum(sum: &mut [f32], values: Buf, order: Buf, start: i32, end: i32, row: &mut [f32]) {
    sum.fill(0.0);
    let (start, n) = (start as usize, (end - start).max(0) as usize);
    for &from in order.i32s(start, n) {
        values.load(from as usize * sum.len(), row);
        for (s, &x) in sum.iter_mut().zip(&*row) {
            *s += x;
        }
    }
}

// Blocks of four numbers that are computed together.
const BLOCKS: usize = 16;

/// Consecutive random numbers from `first` on.
#[inline(always)]
fn uniform_run(key: u64, step: u64, first: u64, out: &mut [f32]) {
    let mut i = 0;
    while i < out.len() {
        let at = first.wrapping_add(i as u64);
        if at.is_multiple_of(4) && out.len() - i >= 4 * BLOCKS {
            let mut words = [[0u32; 4]; BLOCKS];
            for (b, w) in words.iter_mut().enumerate() {
                *w = random::block(key, at / 4 + b as u64, step);
            }
            for (o, w) in out[i..i + 4 * BLOCKS].iter_mut().zip(words.as_flattened()) {
                *o = random::unit(*w);
            }
            i += 4 * BLOCKS;
        } else {
            let words = random::block(key, at / 4, step);
            let skip = (at % 4) as usize;
            let n = (4 - skip).min(out.len() - i);
            for (o, &w) in out[i..i + n].iter_mut().zip(&words[skip..]) {
                *o = random::unit(w);
            }
            i += n;
        }
    }
}

multiversion! {
    /// Sums of chunks → their sum in a tree, at the place of the first chunk, for some columns.
    pub fn add_chunks(sums: Shared<f32>, at: usize, chunks: usize, pitch: usize, columns: Range<usize>) = add_chunks_body
}

#[inline(always)]
fn add_chunks_body<F: Fma>(sums: Shared<f32>, at: usize, chunks: usize, pitch: usize, columns: Range<usize>) {
    let mut step = 1;
    while step < chunks {
        for i in (0..chunks - step).step_by(2 * step) {
            // SAFETY: two different chunks, and only this task uses these columns.
            let (to, from) = unsafe {
                let n = columns.len();
                (sums.slice(at + i * pitch + columns.start, n), sums.read(at + (i + step) * pitch + columns.start, n))
            };
            for (t, &f) in to.iter_mut().zip(from) {
                *t += f;
            }
        }
        step *= 2;
    }
}
