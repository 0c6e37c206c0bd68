#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "cache.hpp"
#include "call.hpp"
#include "isa.hpp"

namespace nb = nanobind;
using namespace evenorm;

namespace {

using Pointer = std::uintptr_t;
using Levels = std::tuple<Size, Size, Size>;

template <typename T>
T* at(Pointer p) {
  return reinterpret_cast<T*>(p);
}

Dtype dtype_of(int code) {
  if (code < 0 || code > 3) throw nb::value_error("dtype: expected 0 to 3, see DTYPES");
  return static_cast<Dtype>(code);
}

void moments(const Plan& plan, int dtype, Pointer x, bool centered, Pointer mean, Pointer m2) {
  Call call{plan, dtype_of(dtype)};
  call.x = at<void>(x);
  call.centered = centered;
  call.mean = at<double>(mean);
  call.m2 = at<double>(m2);
  verbs().moments(call);
}

void apply(const Plan& plan, int dtype, Pointer x, Pointer y, Pointer mean, Pointer rstd,
           int parameter_dtype, Pointer weight, Pointer bias, double offset,
           bool round_normalized) {
  Call call{plan, dtype_of(dtype)};
  call.x = at<void>(x);
  call.out = at<void>(y);
  call.mean = at<double>(mean);
  call.rstd = at<double>(rstd);
  call.parameter_dtype = dtype_of(parameter_dtype);
  call.weight = at<void>(weight);
  call.bias = at<void>(bias);
  call.offset = offset;
  call.round_normalized = round_normalized;
  verbs().apply(call);
}

void grad_sums(const Plan& plan, int dtype, Pointer dy, Pointer x, Pointer mean, Pointer rstd,
               int parameter_dtype, Pointer weight, double offset, Pointer s1, Pointer s2,
               Pointer dweight, Pointer dbias) {
  Call call{plan, dtype_of(dtype)};
  call.dy = at<void>(dy);
  call.x = at<void>(x);
  call.mean = at<double>(mean);
  call.rstd = at<double>(rstd);
  call.parameter_dtype = dtype_of(parameter_dtype);
  call.weight = at<void>(weight);
  call.offset = offset;
  call.s1 = at<double>(s1);
  call.s2 = at<double>(s2);
  call.dweight = at<double>(dweight);
  call.dbias = at<double>(dbias);
  verbs().grad_sums(call);
}

void grad_input(const Plan& plan, int dtype, Pointer dy, Pointer x, Pointer dx, Pointer mean,
                Pointer rstd, int parameter_dtype, Pointer weight, double offset, Pointer c1,
                Pointer c2) {
  Call call{plan, dtype_of(dtype)};
  call.dy = at<void>(dy);
  call.x = at<void>(x);
  call.out = at<void>(dx);
  call.mean = at<double>(mean);
  call.rstd = at<double>(rstd);
  call.parameter_dtype = dtype_of(parameter_dtype);
  call.weight = at<void>(weight);
  call.offset = offset;
  call.s1 = at<double>(c1);
  call.s2 = at<double>(c2);
  verbs().grad_input(call);
}

void forward(const Plan& plan, int dtype, Pointer x, Pointer y, bool centered, double eps,
             Pointer mean, Pointer m2, int parameter_dtype, Pointer weight, Pointer bias,
             double offset, bool round_normalized) {
  Call call{plan, dtype_of(dtype)};
  call.x = at<void>(x);
  call.out = at<void>(y);
  call.centered = centered;
  call.eps = eps;
  call.mean = at<double>(mean);
  call.m2 = at<double>(m2);
  call.parameter_dtype = dtype_of(parameter_dtype);
  call.weight = at<void>(weight);
  call.bias = at<void>(bias);
  call.offset = offset;
  call.round_normalized = round_normalized;
  verbs().forward(call);
}

void backward(const Plan& plan, int dtype, Pointer dy, Pointer x, Pointer dx, bool centered,
              double eps, Pointer mean, Pointer m2, int parameter_dtype, Pointer weight,
              double offset, Pointer dweight, Pointer dbias) {
  Call call{plan, dtype_of(dtype)};
  call.dy = at<void>(dy);
  call.x = at<void>(x);
  call.out = at<void>(dx);
  call.centered = centered;
  call.eps = eps;
  call.mean = at<double>(mean);
  call.m2 = at<double>(m2);
  call.parameter_dtype = dtype_of(parameter_dtype);
  call.weight = at<void>(weight);
  call.offset = offset;
  call.dweight = at<double>(dweight);
  call.dbias = at<double>(dbias);
  verbs().backward(call);
}

Strides strides_of(const Levels& levels) {
  return {std::get<0>(levels), std::get<1>(levels), std::get<2>(levels)};
}

}  // namespace

NB_MODULE(_cpu, m) {
  using Free = nb::call_guard<nb::gil_scoped_release>;
  m.doc() = "Fused normalization kernels on raw pointers; a pointer of 0 is an absent operand.";

  nb::dict dtypes;
  dtypes["float32"] = 0;
  dtypes["float64"] = 1;
  dtypes["bfloat16"] = 2;
  dtypes["float16"] = 3;
  m.attr("DTYPES") = dtypes;

  nb::class_<Plan>(m, "Plan",
                   "batch x outer x group x inner in memory order; outer and inner are reduced.\n\n"
                   "Strides are in elements, (batch, outer, group); the innermost level whose size\n"
                   "is not 1 is dense. Outputs are dense.")
      .def(
          "__init__",
          [](Plan* self, Size batch, Size outer, Size group, Size inner, Size span, Size count,
             Size stretch, const Levels& x_strides, const Levels& dy_strides) {
            new (self) Plan(batch, outer, group, inner, span, count, stretch,
                            strides_of(x_strides), strides_of(dy_strides));
          },
          nb::arg("batch"), nb::arg("outer"), nb::arg("group"), nb::arg("inner"), nb::arg("span"),
          nb::arg("count"), nb::arg("stretch"), nb::arg("x_strides"), nb::arg("dy_strides"))
      .def_ro("statistics", &Plan::statistics, "batch * group")
      .def_ro("values", &Plan::values, "outer * inner: values per statistic")
      .def_ro("parameters", &Plan::parameters, "numel / stretch * count");

  m.def("isas", &isas, "The instruction sets of this build that this processor has, the best last.");
  m.def("isa", &isa, "The instruction set in use.");
  m.def("set_isa", &set_isa, nb::arg("name"), "Use one of isas(); ValueError for another name.");

  m.def("stream_bytes", &stream_bytes,
        "Outputs of this many bytes are stored past the caches; the last cache's size at first.");
  m.def("set_stream_bytes", &set_stream_bytes, nb::arg("bytes"), "See stream_bytes().");

  m.def("moments", &moments, Free(), nb::arg("plan"), nb::arg("dtype"), nb::arg("x"),
        nb::arg("centered"), nb::arg("mean"), nb::arg("m2"),
        "mean and M2 = sum (x - mean)^2 of each statistic; not centered: 0 and sum x^2.");
  m.def("apply", &apply, Free(), nb::arg("plan"), nb::arg("dtype"), nb::arg("x"), nb::arg("y"),
        nb::arg("mean"), nb::arg("rstd"), nb::arg("param_dtype"), nb::arg("weight"),
        nb::arg("bias"), nb::arg("offset"), nb::arg("round_normalized"),
        "y = (x - mean) * rstd * (offset + weight) + bias.");
  m.def("grad_sums", &grad_sums, Free(), nb::arg("plan"), nb::arg("dtype"), nb::arg("dy"),
        nb::arg("x"), nb::arg("mean"), nb::arg("rstd"), nb::arg("param_dtype"), nb::arg("weight"),
        nb::arg("offset"), nb::arg("s1"), nb::arg("s2"), nb::arg("dweight"), nb::arg("dbias"),
        "s1 = sum g*dy, s2 = sum g*dy*xhat of each statistic; dweight = sum dy*xhat, dbias = sum "
        "dy\nof each parameter; g = offset + weight. Any output may be absent.");
  m.def("grad_input", &grad_input, Free(), nb::arg("plan"), nb::arg("dtype"), nb::arg("dy"),
        nb::arg("x"), nb::arg("dx"), nb::arg("mean"), nb::arg("rstd"), nb::arg("param_dtype"),
        nb::arg("weight"), nb::arg("offset"), nb::arg("c1"), nb::arg("c2"),
        "dx = rstd * (g*dy - c1 - xhat*c2); c1, c2 absent: 0, and without c2 neither is x read.");
  m.def("forward", &forward, Free(), nb::arg("plan"), nb::arg("dtype"), nb::arg("x"), nb::arg("y"),
        nb::arg("centered"), nb::arg("eps"), nb::arg("mean"), nb::arg("m2"),
        nb::arg("param_dtype"), nb::arg("weight"), nb::arg("bias"), nb::arg("offset"),
        nb::arg("round_normalized"),
        "moments, then apply with rstd = 1 / sqrt(m2 / values + eps). mean and m2 may be absent.");
  m.def("backward", &backward, Free(), nb::arg("plan"), nb::arg("dtype"), nb::arg("dy"),
        nb::arg("x"), nb::arg("dx"), nb::arg("centered"), nb::arg("eps"), nb::arg("mean"),
        nb::arg("m2"), nb::arg("param_dtype"), nb::arg("weight"), nb::arg("offset"),
        nb::arg("dweight"), nb::arg("dbias"),
        "grad_sums, then grad_input with c = s / values (c1 = 0 when not centered).");
}
