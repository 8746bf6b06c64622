// A step on tensors where they lie, for Python to call through ctypes: no XLA.

#include <cmath>
#include <system_error>
#include <thread>
#include <vector>

#include "driver.h"
#include "threads.h"

namespace optim4rl {
namespace {

constexpr int64_t kChunk = 4096;          // coordinates of a task
constexpr int64_t kWorthAThread = 16384;  // fewer are done before a thread has started

// One tensor: its gradient [n], what is remembered of it [state, n], the networks' hidden states
// first, and its age, the number of updates made.
struct Tensor {
  int64_t n;
  const float* gradient;
  float* memory;
  float* age;
};

struct Chunk {
  int64_t tensor, begin, end;
};

// Threads of one call; all have ended when it goes.
class Threads {
 public:
  explicit Threads(int64_t count) : count_(count) {}
  ~Threads() {
    for (std::thread& thread : threads_) thread.join();
  }

  int64_t num_threads() const { return count_; }

  template <class Work>
  void Schedule(Work&& work) {
    try {
      threads_.emplace_back(std::forward<Work>(work));
    } catch (const std::system_error&) {  // No more threads are to be had: the others do it.
    }
  }

 private:
  const int64_t count_;
  std::vector<std::thread> threads_;
};

Clock clock_at(const Rule& rule, float age) {
  const float steps = age + 1.0f;
  return {1.0f - std::pow(rule.beta1, steps), 1.0f - std::pow(rule.beta2, steps),
          1.0f - std::pow(rule.beta_slow, steps), std::log1p(age) / 6.0f};
}

Agent agent_of(const Rule& rule, const Tensor& tensor) {
  Agent agent = {};
  agent.n = tensor.n;
  agent.steps = 1;
  agent.gradients = tensor.gradient;
  float* memory = tensor.memory;
  for (int i = 0; i < rule.num_networks; ++i, memory += rule.hidden * tensor.n)
    agent.hidden[i] = agent.new_hidden[i] = memory;
  agent.moments = agent.new_moments = memory;
  return agent;
}

}  // namespace
}  // namespace optim4rl

#pragma GCC visibility push(default)
extern "C" {

// Writes the directions of all tensors, one after the other, and moves memories and ages on.
// `inputs` [count, num_segment_inputs] is what the networks read of each tensor. Results do not
// depend on the number of threads.
void optim4rl_direct_step(const int64_t* sizes, const float* settings, const float* weights,
                          int64_t count, const optim4rl::Tensor* tensors, const float* inputs,
                          float* direction, int64_t threads) {
  using namespace optim4rl;
  const Rule rule = unpack_rule(sizes, settings);
  std::vector<Agent> agents;
  std::vector<Clock> clocks;
  std::vector<Chunk> chunks;
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = tensors[i].n;
    agents.push_back(agent_of(rule, tensors[i]));
    agents[i].weights = weights;
    agents[i].direction = direction + total;
    clocks.push_back(clock_at(rule, *tensors[i].age));
    for (int64_t begin = 0; begin < n; begin += kChunk)
      chunks.push_back({i, begin, std::min(n, begin + kChunk)});
    *tensors[i].age += 1.0f;
    total += n;
  }
  const int64_t floats = arithmetic()->step_workspace(rule);
  Threads pool(std::min(threads, 1 + total / kWorthAThread));
  Tasks::run(pool, static_cast<int64_t>(chunks.size()), [&](int64_t task) {
    const Chunk& chunk = chunks[task];
    Rule own = rule;
    own.segment_ends = &tensors[chunk.tensor].n;
    own.segment_inputs = inputs + chunk.tensor * rule.num_segment_inputs;
    Agent agent = agents[chunk.tensor];
    agent.clocks = &clocks[chunk.tensor];
    arithmetic()->step(own, agent, chunk.begin, chunk.end, workspace(floats));
  });
}
}  // extern "C"
#pragma GCC visibility pop
