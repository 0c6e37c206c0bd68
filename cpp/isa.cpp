#include "isa.hpp"

#include <atomic>
#include <stdexcept>

namespace evenorm {

namespace baseline {
extern const Verbs verbs;
}
#if defined(EVENORM_X86)
namespace avx2 {
extern const Verbs verbs;
}
namespace avx512 {
extern const Verbs verbs;
}
#endif

namespace {

struct Isa {
  const char* name;
  const Verbs* verbs;
};

std::vector<Isa> supported() {
  std::vector<Isa> result{{"baseline", &baseline::verbs}};
#if defined(EVENORM_X86)
  __builtin_cpu_init();
  bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
  if (has_avx2) result.push_back({"avx2", &avx2::verbs});
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    result.push_back({"avx512", &avx512::verbs});
  }
#endif
  return result;
}

const std::vector<Isa>& known() {
  static const std::vector<Isa> result = supported();
  return result;
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> chosen{&known().back()};
  return chosen;
}

}  // namespace

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa& isa : known()) names.push_back(isa.name);
  return names;
}

std::string isa() { return current().load()->name; }

void set_isa(const std::string& name) {
  for (const Isa& isa : known()) {
    if (isa.name == name) {
      current() = &isa;
      return;
    }
  }
  throw std::invalid_argument("set_isa: '" + name + "' is not one of isas()");
}

const Verbs& verbs() { return *current().load()->verbs; }

}  // namespace evenorm
