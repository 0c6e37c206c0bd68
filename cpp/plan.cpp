#include "plan.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace evenorm {
namespace {

constexpr Size kPiece = 65536;         // elements that are worth a thread's while
constexpr Size kSlab = 65536;          // elements that fit the second cache, input and output
constexpr Size kShortSpan = 32;        // parameters that change this often are read by element
constexpr Size kShortPeriod = 512;     // shorter arrays of parameters are repeated
constexpr Size kShortRun = 32;         // shorter runs are taken as columns
constexpr Size kOrderedRun = 16;       // shorter runs are not worth a start of their own
constexpr Size kFewRows = 8;
constexpr Size kTinyRow = 32;
constexpr Size kRaggedRun = 4;         // shorter runs that a mask cuts are taken one element at a time
constexpr Size kNarrow = 256, kWide = 1024;  // columns
constexpr Size kTileRows = 32;

Size ceil_div(Size a, Size b) { return (a + b - 1) / b; }

void expect(bool holds, const char* what, Size came) {
  if (!holds) {
    throw std::invalid_argument(std::string("Plan: expected ") + what + ", got " +
                                std::to_string(came));
  }
}

bool end_to_end(Size outer_stride, Size inner_stride, Size inner_size) {
  return outer_stride == inner_stride * inner_size;
}

}  // namespace

Plan::Plan(Size batch_, Size outer_, Size group_, Size inner_, Size span_, Size count_,
           Size stretch_, Strides x_strides, Strides dy_strides, const MaskStrides* mask_strides)
    : batch(batch_), outer(outer_), group(group_), inner(inner_), span(span_), count(count_),
      stretch(stretch_), x(x_strides), dy(dy_strides), masked(mask_strides),
      mask(mask_strides ? *mask_strides : MaskStrides{}) {
  for (Size size : {batch, outer, group, inner}) expect(size >= 0, "a size of at least 0", size);
  for (Size size : {span, count, stretch}) {
    expect(size >= 1, "span, count and stretch of at least 1", size);
  }
  values = outer * inner;
  statistics = batch * group;
  numel = statistics * values;
  expect(numel % stretch == 0, "a stretch that divides the number of elements", stretch);
  parameters = numel / stretch * count;
  dense = {outer * group * inner, group * inner, inner};
  layout = Layout::empty;
  by_element = by_row = in_order = false;
  period = 0;
  run = {};
  column = given_column = {};
  if (numel == 0) return;
  merge();
  choose();
  in_order = runs_in_order();
  cut_runs();
  if (layout == Layout::columns) cut_columns();
}

bool Plan::dy_is_dense() const {
  return (batch == 1 || dy.batch == dense.batch) && (outer == 1 || dy.outer == dense.outer) &&
         (group == 1 || dy.group == dense.group);
}

bool Plan::rows_are_dense() const {
  return group == 1 || (x.group == inner && dy.group == inner);
}

// Rows that are there or not as a whole, or columns.
bool Plan::mask_suits_columns() const {
  return mask.inner == 0 && (mask.group == 0 || (mask.outer == 0 && inner == 1));
}

void Plan::merge() {
  if (count == 1) span = stretch;
  if (inner == 1 && group == 1) {
    std::swap(inner, outer);
    std::swap(mask.inner, mask.outer);
  }
  bool one_run = group == 1 && outer > 1 && end_to_end(x.outer, 1, inner) &&
                 end_to_end(dy.outer, 1, inner) && end_to_end(mask.outer, mask.inner, inner);
  // Rows that share one period of parameters stay rows.
  bool one_period = count > 1 && span < kShortSpan && span * count == inner && outer >= kFewRows;
  if (one_run && !one_period) {
    inner *= outer;
    outer = 1;
  }
  if (outer == 1 && group == 1) {
    group = batch;
    x.group = x.batch;
    dy.group = dy.batch;
    dense.group = dense.batch;
    mask.group = mask.batch;
    batch = 1;
  } else if (outer == 1 && end_to_end(x.batch, x.group, group) &&
             end_to_end(dy.batch, dy.group, group) && end_to_end(mask.batch, mask.group, group)) {
    group *= batch;
    batch = 1;
  }
  dense = {outer * group * inner, group * inner, inner};
}

void Plan::choose() {
  Size row = group * inner, cycle = span * count;
  by_element = count > 1 && span < kShortSpan;
  bool aligned = stretch % cycle == 0;

  // Do parameters depend on the column alone, or on the row alone?
  bool whole = stretch % (outer * row) == 0;
  bool in_parts = whole || (stretch % row == 0 && outer * row % stretch == 0);
  bool same_columns = in_parts && (count == 1 || (aligned && row % cycle == 0));
  bool same_rows = stretch % row == 0 && span % row == 0;
  if (outer > 1 && rows_are_dense() && (same_columns || same_rows) && mask_suits_columns()) {
    bool many = outer >= kFewRows;
    if (inner < kTinyRow || (many && (inner < kShortRun || (by_element && same_columns)))) {
      layout = Layout::columns;
      by_row = same_rows && !(same_columns && whole);
      by_element = !by_row;
      period = row;
      return;
    }
  }
  if (outer == 1 && inner <= kTurnedRow && mask.inner == 0) {
    bool every_row = count == 1 ? stretch == numel : stretch == numel && inner % cycle == 0;
    if (every_row) {
      layout = Layout::rows;
      by_element = true;
      period = inner;
      return;
    }
  }
  // Columns that a mask has made runs.
  if (masked && span % inner == 0) by_element = false;
  // Each statistic within one row of parameters.
  bool nested = outer == 1 ? stretch % inner == 0 : stretch % (outer * row) == 0;
  if ((by_element && !(aligned && nested)) || (inner < kRaggedRun && !mask_suits_columns())) {
    layout = Layout::plain;
    return;
  }
  layout = Layout::runs;
  if (by_element) {
    bool wraps = inner > cycle;
    // Long enough for a run to add to an entry of it a few times only.
    Size wanted = std::min(inner, std::max(kShortPeriod, inner / kTileRows));
    period = cycle * (wraps ? ceil_div(wanted, cycle) : 1);
  }
}

// Each run has one parameter, and where these are many, the next run has the next one.
bool Plan::runs_in_order() const {
  Size row = group * inner;
  bool next = stretch % row == 0 && (count == 1 || (span == inner && count % group == 0));
  return outer > 1 && inner >= kOrderedRun && next && !masked;
}

void Plan::cut_runs() {
  run.chunks_per_run = ceil_div(inner, kChunk);
  run.length = ceil_div(ceil_div(inner, run.chunks_per_run), 16) * 16;
  run.chunks_per_run = ceil_div(inner, run.length);
  run.runs_per_chunk = std::max<Size>(1, kChunk / inner);
  run.chunks = run.chunks_per_run > 1 ? outer * run.chunks_per_run
                                      : ceil_div(outer, run.runs_per_chunk);
  run.chunks_per_piece = kPiece / kChunk;
  run.pieces = ceil_div(run.chunks, run.chunks_per_piece);
}

void Plan::cut_columns() {
  Size row = group * inner;
  bool end_on = end_to_end(x.outer, 1, row) && end_to_end(dy.outer, 1, row);
  bool whole = stretch >= outer * row;
  bool folds = end_on && whole && !by_row && !masked && row < kNarrow;
  ColumnCut c{};
  c.fold = folds ? std::min(outer, ceil_div(kNarrow, row)) : 1;
  c.width = row * c.fold;
  if (by_element) period = c.width;
  c.rows = outer / c.fold;
  c.part = whole || by_row ? c.rows : stretch / row;
  auto cut = [&](Size wanted, Size elements) {
    c.block = c.fold > 1 ? c.width : std::min(c.width, std::max<Size>(1, wanted / inner) * inner);
    c.blocks = ceil_div(c.width, c.block);
    c.piece = std::max(kTileRows, elements / c.block / kTileRows * kTileRows);
    c.pieces_per_part = ceil_div(c.part, c.piece);
    c.pieces = ceil_div(c.rows, c.part) * c.pieces_per_part;
    return c;
  };
  // Narrow enough for a slab of all rows to meet again in the second cache; if not, wide.
  Size fits = kSlab / c.rows;
  column = cut(std::min(fits >= kNarrow ? fits : kWide, kWide), 4 * kPiece);
  given_column = cut(kWide, kPiece);
}

}  // namespace evenorm
