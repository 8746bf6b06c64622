// Which of the instruction sets that a library was compiled for to use.

#pragma once

#include <cstdlib>
#include <cstring>

namespace optim4rl {

// Whether this machine has an instruction set, by the name that the build gives it.
inline bool has_instruction_set(const char* name) {
#ifdef __x86_64__
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (std::strcmp(name, "avx2") == 0) return has_avx2;
  if (std::strcmp(name, "avx512") == 0)
    return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
  (void)name;
  return true;
}

// Of the compilations that this machine can run, the one that OPTIM4RL_NATIVE_ISA names, or null;
// the first of them if the variable is not set. Each has a `name`.
template <class Arithmetic, int N>
const Arithmetic* choose(const Arithmetic* const (&compiled)[N]) {
  const char* wanted = std::getenv("OPTIM4RL_NATIVE_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (const Arithmetic* arithmetic : compiled) {
    const bool asked_for = any || std::strcmp(arithmetic->name, wanted) == 0;
    if (asked_for && has_instruction_set(arithmetic->name)) return arithmetic;
  }
  return nullptr;
}

}  // namespace optim4rl
