#include <memory>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "cache.hpp"
#include "call.hpp"
#include "history.hpp"
#include "isa.hpp"
#include "pages.hpp"

namespace nb = nanobind;
using namespace evenorm;

namespace {

using Pointer = std::uintptr_t;
using Levels = std::tuple<Size, Size, Size>;
using MaskLevels = std::tuple<Size, Size, Size, Size>;

template <typename T>
T* at(Pointer p) {
  return reinterpret_cast<T*>(p);
}

template <typename Enum>
Enum code_of(int code, int count, const char* what) {
  if (code < 0 || code >= count) throw nb::value_error(what);
  return static_cast<Enum>(code);
}
Dtype dtype_of(int code) { return code_of<Dtype>(code, 4, "dtype: expected one of DTYPES"); }

History history_of(Pointer mean, Pointer variance, int dtype, Size count) {
  return {at<void>(mean), at<void>(variance), dtype_of(dtype), count};
}

// Two rows of numbers: where they are wanted, or of this call alone.
struct Rows {
  std::unique_ptr<double[]> own;
  double *first, *second;

  explicit Rows(Size count) : own(new double[2 * count]), first(own.get()), second(first + count) {}
  Rows(Size count, Pointer wanted_first, Pointer wanted_second) : Rows(wanted_first ? 0 : count) {
    if (wanted_first) first = at<double>(wanted_first), second = at<double>(wanted_second);
  }
};

// All of a call that its tensors' values do not change.
class Kernel {
 public:
  Kernel(const Plan& plan, int dtype, bool centered, double eps, int parameter_dtype, double offset,
         bool round_normalized, int activation, double slope)
      : plan_(plan), call_{plan_, dtype_of(dtype)} {
    call_.centered = centered;
    call_.eps = eps;
    call_.parameter_dtype = dtype_of(parameter_dtype);
    call_.offset = offset;
    call_.round_normalized = round_normalized;
    call_.activation = code_of<Activation>(activation, 8, "activation: expected one of ACTIVATIONS");
    call_.slope = slope;
  }
  Kernel(const Kernel&) = delete;

  void moments(Pointer x, Pointer mean, Pointer m2, Pointer mask) const {
    Call call = masked(mask);
    call.x = at<void>(x);
    statistics(call, mean, m2);
    verbs().moments(call);
  }

  void apply(Pointer x, Pointer y, Pointer mean, Pointer rstd, Pointer weight, Pointer bias,
             Pointer residual, Pointer mask) const {
    Call call = masked(mask);
    call.x = at<void>(x);
    call.out = room(y);
    call.mean = at<double>(mean);
    call.rstd = at<double>(rstd);
    finish(call, weight, bias, residual);
    verbs().apply(call);
  }

  void forward(Pointer x, Pointer y, Pointer mean, Pointer m2, Pointer weight, Pointer bias,
               Pointer residual, Pointer mask, Pointer addend, Pointer total) const {
    Call call = masked(mask);
    call.x = at<void>(x);
    call.out = room(y);
    call.addend = at<void>(addend);
    call.total = room(total);
    statistics(call, mean, m2);
    finish(call, weight, bias, residual);
    verbs().forward(call);
  }

  void grad_sums(Pointer dy, Pointer x, Pointer mean, Pointer rstd, Pointer weight, Pointer bias,
                 Pointer residual, Pointer output, Pointer s1, Pointer s2, Pointer dweight,
                 Pointer dbias, Pointer mask) const {
    Call call = masked(mask);
    gradient(call, dy, x, output);
    call.mean = at<double>(mean);
    call.rstd = at<double>(rstd);
    finish(call, weight, bias, residual);
    call.s1 = at<double>(s1);
    call.s2 = at<double>(s2);
    call.dweight = at<double>(dweight);
    call.dbias = at<double>(dbias);
    verbs().grad_sums(call);
  }

  void grad_input(Pointer dy, Pointer x, Pointer dx, Pointer mean, Pointer rstd, Pointer weight,
                  Pointer bias, Pointer residual, Pointer output, Pointer c1, Pointer c2,
                  Pointer d_residual, Pointer mask) const {
    Call call = masked(mask);
    gradient(call, dy, x, output);
    if (!x && !output && call.activation != Activation::identity) {
      throw nb::value_error("grad_input: the activation's slope needs x or the output");
    }
    call.out = room(dx);
    call.mean = at<double>(mean);
    call.rstd = at<double>(rstd);
    finish(call, weight, bias, residual);
    call.s1 = at<double>(c1);
    call.s2 = at<double>(c2);
    call.d_residual = room(d_residual);
    verbs().grad_input(call);
  }

  void backward(Pointer dy, Pointer x, Pointer dx, Pointer mean, Pointer m2, Pointer weight,
                Pointer bias, Pointer residual, Pointer output, Pointer dweight, Pointer dbias,
                Pointer d_residual, Pointer mask, Pointer carried) const {
    Call call = masked(mask);
    call.carried = at<void>(carried);
    statistics(call, mean, m2);
    back(call, dy, x, dx, weight, bias, residual, output, dweight, dbias, d_residual);
  }

  void remembered(Pointer x, Pointer y, Pointer running_mean, Pointer running_variance, int dtype,
                  Pointer mean, Pointer rstd, Pointer weight, Pointer bias,
                  Pointer residual) const {
    Rows kept(plan_.statistics, mean, rstd);
    recall(history_of(running_mean, running_variance, dtype, plan_.statistics), call_.eps,
           kept.first, kept.second);
    apply(x, y, address(kept.first), address(kept.second), weight, bias, residual, 0);
  }

  void gradients(bool given, Pointer dy, Pointer x, Pointer dx, Pointer mean, Pointer spread,
                 Pointer weight, Pointer bias, Pointer residual, Pointer output, Pointer d_weight,
                 Pointer d_bias, Pointer d_residual, Pointer carried) const {
    if (given && carried) throw nb::value_error("gradients: of given statistics nothing is carried");
    Rows sums(plan_.parameters);
    Pointer to_weight = d_weight ? address(sums.first) : 0;
    Pointer to_bias = d_bias ? address(sums.second) : 0;
    if (given && !d_weight && !d_bias) {
      grad_input(dy, x, dx, mean, spread, weight, bias, residual, output, 0, 0, d_residual, 0);
    } else {
      Call call = call_;
      call.carried = at<void>(carried);
      statistics(call, mean, given ? 0 : spread);
      if (given) call.rstd = at<double>(spread);
      back(call, dy, x, dx, weight, bias, residual, output, to_weight, to_bias, d_residual);
    }
    if (d_weight) round_sums(sums.first, plan_.parameters, call_.parameter_dtype, at<void>(d_weight));
    if (d_bias) round_sums(sums.second, plan_.parameters, call_.parameter_dtype, at<void>(d_bias));
  }

 private:
  static Pointer address(const double* p) { return reinterpret_cast<Pointer>(p); }

  Call masked(Pointer mask) const {
    if (plan_.masked != (mask != 0)) {
      throw nb::value_error("mask: expected one for a plan that was made with its strides, and none for another");
    }
    Call call = call_;
    call.mask = at<void>(mask);
    return call;
  }
  void* room(Pointer p) const {
    bool wide = call_.dtype == Dtype::float64, narrow = call_.dtype >= Dtype::bfloat16;
    if (p) prefer_huge_pages(at<void>(p), plan_.numel * (wide ? 8 : narrow ? 2 : 4));
    return at<void>(p);
  }
  void back(Call& call, Pointer dy, Pointer x, Pointer dx, Pointer weight, Pointer bias,
            Pointer residual, Pointer output, Pointer dweight, Pointer dbias,
            Pointer d_residual) const {
    gradient(call, dy, x, output);
    call.out = room(dx);
    finish(call, weight, bias, residual);
    call.dweight = at<double>(dweight);
    call.dbias = at<double>(dbias);
    call.d_residual = room(d_residual);
    verbs().backward(call);
  }
  static void statistics(Call& call, Pointer mean, Pointer m2) {
    call.mean = at<double>(mean);
    call.m2 = at<double>(m2);
  }
  static void finish(Call& call, Pointer weight, Pointer bias, Pointer residual) {
    call.weight = at<void>(weight);
    call.bias = at<void>(bias);
    call.residual = at<void>(residual);
  }
  static void gradient(Call& call, Pointer dy, Pointer x, Pointer output) {
    call.dy = at<void>(dy);
    call.x = at<void>(x);
    call.output = at<void>(output);
  }

  Plan plan_;
  Call call_;
};

Strides strides_of(const Levels& levels) {
  return {std::get<0>(levels), std::get<1>(levels), std::get<2>(levels)};
}

MaskStrides strides_of(const MaskLevels& levels) {
  return {std::get<0>(levels), std::get<1>(levels), std::get<2>(levels), std::get<3>(levels)};
}

}  // namespace

NB_MODULE(_cpu, m) {
  using Free = nb::call_guard<nb::gil_scoped_release>;
  // A graph of autograd that outlives the interpreter holds its kernels, which is no fault of anyone's.
  nb::set_leak_warnings(false);
  m.doc() = "Fused normalization kernels on raw pointers; a pointer of 0 is an absent operand.";

  auto codes = [](std::initializer_list<const char*> names) {
    nb::dict result;
    for (const char* name : names) result[name] = nb::len(result);
    return result;
  };
  m.attr("DTYPES") = codes({"float32", "float64", "bfloat16", "float16"});
  m.attr("ACTIVATIONS") = codes(
      {"identity", "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "gelu_tanh"});

  nb::class_<Plan>(m, "Plan",
                   "batch x outer x group x inner in memory order; outer and inner are reduced.\n\n"
                   "Strides are in elements, (batch, outer, group); the innermost level whose size\n"
                   "is not 1 is dense. Outputs are dense. A mask has a byte for each element of the levels in\n"
                   "which it varies, (batch, outer, group, inner), and stride 0 in the others.")
      .def(
          "__init__",
          [](Plan* self, Size batch, Size outer, Size group, Size inner, Size span, Size count,
             Size stretch, const Levels& x_strides, const Levels& dy_strides,
             const std::optional<MaskLevels>& mask_strides) {
            MaskStrides mask = mask_strides ? strides_of(*mask_strides) : MaskStrides{};
            new (self) Plan(batch, outer, group, inner, span, count, stretch, strides_of(x_strides),
                            strides_of(dy_strides), mask_strides ? &mask : nullptr);
          },
          nb::arg("batch"), nb::arg("outer"), nb::arg("group"), nb::arg("inner"), nb::arg("span"),
          nb::arg("count"), nb::arg("stretch"), nb::arg("x_strides"), nb::arg("dy_strides"),
          nb::arg("mask_strides") = nb::none())
      .def_ro("statistics", &Plan::statistics, "batch * group")
      .def_ro("values", &Plan::values, "outer * inner: values per statistic")
      .def_ro("parameters", &Plan::parameters, "numel / stretch * count");

  nb::class_<Kernel>(m, "Kernel",
                     "The verbs on a plan; each releases the GIL and takes addresses.\n\n"
                     "xhat = (x - mean) * rstd, z = xhat * (offset + weight) + bias + residual,\n"
                     "y = activation(z), rstd = 1 / sqrt(m2 / values + eps); mean and M2 of each statistic\n"
                     "are float64, as are all sums. Residual, output and d_residual are dense. In the\n"
                     "backward verbs dz = dy * activation'(z); the output may stand for the residual where\n"
                     "the slope can be read from it: relu, relu6, leaky_relu. Of what a mask hides nothing is\n"
                     "read as a number: it is 0 in y, dx and d_residual, absent from sums and values.")
      .def(nb::init<const Plan&, int, bool, double, int, double, bool, int, double>(),
           nb::arg("plan"), nb::arg("dtype"), nb::arg("centered"), nb::arg("eps"),
           nb::arg("parameter_dtype"), nb::arg("offset"), nb::arg("round_normalized"),
           nb::arg("activation"), nb::arg("slope"))
      .def("moments", &Kernel::moments, Free(), nb::arg("x"), nb::arg("mean"), nb::arg("m2"),
           nb::arg("mask") = 0,
           "mean and M2 = sum (x - mean)^2; not centered: 0 and sum x^2.")
      .def("apply", &Kernel::apply, Free(), nb::arg("x"), nb::arg("y"), nb::arg("mean"),
           nb::arg("rstd"), nb::arg("weight"), nb::arg("bias"), nb::arg("residual"),
           nb::arg("mask") = 0, "y.")
      .def("forward", &Kernel::forward, Free(), nb::arg("x"), nb::arg("y"), nb::arg("mean"),
           nb::arg("m2"), nb::arg("weight"), nb::arg("bias"), nb::arg("residual"),
           nb::arg("mask") = 0, nb::arg("addend") = 0, nb::arg("total") = 0,
           "moments, then apply. mean and m2 may be absent. With an addend this is of total = x + addend,\n"
           "which is written; then x and addend are dense as total is.")
      .def("grad_sums", &Kernel::grad_sums, Free(), nb::arg("dy"), nb::arg("x"), nb::arg("mean"),
           nb::arg("rstd"), nb::arg("weight"), nb::arg("bias"), nb::arg("residual"),
           nb::arg("output"), nb::arg("s1"), nb::arg("s2"), nb::arg("dweight"), nb::arg("dbias"),
           nb::arg("mask") = 0,
           "s1 = sum g*dz, s2 = sum g*dz*xhat of each statistic; dweight = sum dz*xhat, dbias = sum dz\n"
           "of each parameter; g = offset + weight. Any output may be absent.")
      .def("grad_input", &Kernel::grad_input, Free(), nb::arg("dy"), nb::arg("x"), nb::arg("dx"),
           nb::arg("mean"), nb::arg("rstd"), nb::arg("weight"), nb::arg("bias"),
           nb::arg("residual"), nb::arg("output"), nb::arg("c1"), nb::arg("c2"),
           nb::arg("d_residual"), nb::arg("mask") = 0,
           "dx = rstd * (g*dz - c1 - xhat*c2), and dz; c1, c2 absent: 0. Without c2 x may be absent too,\n"
           "unless the activation needs it.")
      .def("backward", &Kernel::backward, Free(), nb::arg("dy"), nb::arg("x"), nb::arg("dx"),
           nb::arg("mean"), nb::arg("m2"), nb::arg("weight"), nb::arg("bias"), nb::arg("residual"),
           nb::arg("output"), nb::arg("dweight"), nb::arg("dbias"), nb::arg("d_residual"),
           nb::arg("mask") = 0, nb::arg("carried") = 0,
           "grad_sums, then grad_input with c = s / values (c1 = 0 when not centered); what is carried, dense,\n"
           "is added to dx.")
      .def("remembered", &Kernel::remembered, Free(), nb::arg("x"), nb::arg("y"),
           nb::arg("running_mean"), nb::arg("running_variance"), nb::arg("dtype"),
           nb::arg("mean"), nb::arg("rstd"), nb::arg("weight"), nb::arg("bias"),
           nb::arg("residual"),
           "y of running averages; mean and rstd = 1 / sqrt(running_variance + eps) may be absent.")
      .def("gradients", &Kernel::gradients, Free(), nb::arg("given"), nb::arg("dy"), nb::arg("x"),
           nb::arg("dx"), nb::arg("mean"), nb::arg("spread"), nb::arg("weight"), nb::arg("bias"),
           nb::arg("residual"), nb::arg("output"), nb::arg("d_weight"), nb::arg("d_bias"),
           nb::arg("d_residual"), nb::arg("carried") = 0,
           "backward, the parameters' gradients in their own type; of given statistics, whose spread\n"
           "is rstd and not M2, grad_sums and grad_input in one, and nothing is carried.");

  m.def(
      "absorb",
      [](Pointer running_mean, Pointer running_variance, int dtype, Size count, Pointer mean,
         Pointer m2, double divisor, double share, Pointer updates) {
        bool finite = absorb(history_of(running_mean, running_variance, dtype, count),
                             at<double>(mean), at<double>(m2), divisor, share);
        if (finite && updates) ++*at<std::int64_t>(updates);
        return finite;
      },
      nb::arg("running_mean"), nb::arg("running_variance"), nb::arg("dtype"), nb::arg("count"),
      nb::arg("mean"), nb::arg("m2"), nb::arg("divisor"), nb::arg("share"), nb::arg("updates"),
      "running <- running + share * (new - running), the variance being m2 / divisor; False, and\n"
      "nothing written, where a number is not finite. updates is an int64, or absent.");

  m.def("isas", &isas, "The instruction sets of this build that this processor has, the best last.");
  m.def("isa", &isa, "The instruction set in use.");
  m.def("set_isa", &set_isa, nb::arg("name"), "Use one of isas(); ValueError for another name.");

  m.def("stream_bytes", &stream_bytes,
        "Outputs of this many bytes are stored past the caches; half of the last cache at first, which\n"
        "then does not hold input and output.");
  m.def("set_stream_bytes", &set_stream_bytes, nb::arg("bytes"), "See stream_bytes().");
}
