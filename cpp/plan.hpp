// The plan: batch x outer x group x inner, of which outer and inner are reduced, and how the work is cut.
#pragma once

#include <cstdint>

namespace evenorm {

using Size = std::int64_t;

constexpr Size kChunk = 4096;    // elements that fit the first cache
constexpr Size kTurnedRow = 24;  // the longest rows that are turned into columns

// Strides of the three outer levels, in elements; the innermost is dense.
struct Strides {
  Size batch, outer, group;
};

// Strides of the mask's flags, 0 where a level shares them: it is dense in the levels in which it varies.
struct MaskStrides {
  Size batch = 0, outer = 0, group = 0, inner = 0;
};

enum class Layout {
  empty,
  plain,    // parameters that follow neither runs nor columns: one element at a time
  runs,     // inner is long: each statistic is a few dense runs
  columns,  // inner is short: the outer rows are reduced column by column
  rows,     // outer is 1 and inner tiny: tiles of rows are turned into columns
};

// How a statistic's runs are cut. A chunk, whole runs or a part of one, fits the first cache; a piece of
// chunks is what threads share. Both depend on outer and inner alone, so that a row's result does too.
struct RunCut {
  Size length, chunks_per_run;  // a run's chunks, where it is longer than one
  Size runs_per_chunk;
  Size chunks, chunks_per_piece, pieces;
};

// How rows of columns are cut. `fold` short rows lie end to end as one wide row.
struct ColumnCut {
  Size fold, width, rows;       // of the folded rows; outer % fold rows are left over
  Size block, blocks;           // columns
  Size piece, pieces_per_part;  // rows; a part is what one row of parameters covers
  Size part, pieces;
};

// For the flat position f = ((b * outer + o) * group + g) * inner + i of the dense output:
//   statistic = b * group + g
//   parameter = f / stretch * count + f / span % count
// Levels of one kind that lie end to end are merged, which changes neither.
struct Plan {
  Size batch, outer, group, inner;
  Size span, count, stretch;
  Strides x, dy, dense;
  bool masked;
  MaskStrides mask;
  Size numel, statistics, values, parameters;

  Layout layout;
  bool by_element;  // parameters are read from arrays with one entry per element of a period
  bool by_row;      // columns: all of a row shares its parameter
  bool in_order;    // runs follow one another in memory as their statistics and parameters do, outer by outer
  Size period;
  RunCut run;
  ColumnCut column, given_column;  // the latter where statistics are given, and memory is passed once

  Plan(Size batch, Size outer, Size group, Size inner, Size span, Size count, Size stretch,
       Strides x_strides, Strides dy_strides, const MaskStrides* mask_strides = nullptr);

  // Whether dy lies as outputs do.
  bool dy_is_dense() const;

 private:
  void merge();
  void choose();
  bool runs_in_order() const;
  void cut_runs();
  void cut_columns();
  bool rows_are_dense() const;
  bool mask_suits_columns() const;
};

}  // namespace evenorm
