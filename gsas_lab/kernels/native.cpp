// The sampled losses in one pass over each row: scores, slopes and all gradients. See native.py.
//
// Vectors are 16 floats wide in the compiler's own vector types: one AVX-512 register, two of AVX2,
// four of NEON, whichever the machine has. Built without -ffast-math: the rounding in exp needs it.
#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <functional>
#include <thread>
#include <utility>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float lanes __attribute__((vector_size(64), aligned(4)));
typedef int32_t mask __attribute__((vector_size(64), aligned(4)));
constexpr int W = 16;

static inline lanes load(const float* p) { return *(const lanes*)p; }
static inline void store(float* p, lanes v) { *(lanes*)p = v; }
static inline lanes all(float x) { return lanes{} + x; }
static inline lanes pick(mask m, lanes yes, lanes no) {
  return (lanes)(((mask)yes & m) | ((mask)no & ~m));
}
static inline lanes maximum(lanes a, lanes b) { return pick(a < b, b, a); }  // a NaN in a stays

// Sums of the halves, quarters, pairs of two vectors: four levels turn 16 vectors into their sums.
#define SHUFFLE __builtin_shufflevector
static inline lanes halves(lanes a, lanes b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
static inline lanes quarters(lanes a, lanes b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
static inline lanes fours(lanes a, lanes b) {
  return SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
         SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}
static inline lanes pairs(lanes a, lanes b) {
  return SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
static inline float sum(lanes v) { return pairs(fours(quarters(halves(v, v), v), v), v)[0]; }

// e^x for x ≤ 0: 2^n · e^r with |r| ≤ ln(2)/2; 1.7e-38 below −87.
static inline lanes exp_of_negative(lanes x) {
  const float shift = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  x = maximum(x, all(-87.0f));
  lanes n = x * 1.44269504088896341f + shift;
  const mask power = (mask)n << 23;
  n -= shift;
  const lanes r = x - n * 0.693145751953125f - n * 1.42860682030941723e-6f;
  lanes p = all(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
  return (lanes)((mask)p + power);
}

// log(1 + e) = 2 atanh(e / (2 + e)) for 0 ≤ e ≤ 1, exact to rounding for the smallest e too.
static inline lanes log_one_plus(lanes e) {
  const lanes s = e / (e + 2.0f), q = s * s;
  lanes p = all(1.0f / 15);
  for (float c : {1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3, 1.0f})
    p = p * q + c;
  return 2.0f * s * p;
}

// torch's own OpenMP threads, where they are GNU's: they spin for milliseconds after each of torch's
// operations, and threads of ours beside them would wait that long for a core.
struct Pool {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel, or null
  int (*number)();                                               // omp_get_thread_num
  int (*size)();                                                 // omp_get_num_threads
};

// Calls work(0) … work(threads − 1) at the same time.
template <class F>
static void together(const Pool& pool, int64_t threads, F& work) {
  struct Team {
    const Pool& pool;
    int64_t threads;
    F& work;
    std::atomic<bool> short_of_threads{false};
  } team{pool, threads, work};
  if (threads > 1 && pool.parallel) {
    pool.parallel(
        [](void* given) {
          Team& t = *(Team*)given;
          if (t.pool.size() == t.threads) t.work(t.pool.number());
          else t.short_of_threads = true;  // a limit was set: nobody works
        },
        &team, threads, 0);
    if (!team.short_of_threads) return;
  }
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; t++) others.emplace_back(std::ref(work), t);
  work(0);
  for (auto& other : others) other.join();
}

struct Pair {
  int32_t position;
  float slope;
};

struct Work {  // as native.py's _Work
  const float *hidden, *table;          // (positions, d), (rows, d)
  const int64_t *positives, *negatives; // (positions,), (positions, k)
  float *d_hidden, *d_table;            // written whole; d_table may be null where the pairs are asked
  int32_t* begin;                       // (rows + 1,) of each row's pairs, or null
  Pair* pairs;                          // (positions · (k + 1),) by row; all positions in one chunk
  int64_t positions, k, rows, chunk, threads, softmax;
  float beta, bias, scale;              // scale: of the loss and of every gradient
  double loss, d_bias;                  // results
  Pool pool;
};

// out[i] = hidden · table[item[i]] + bias for n items, n a multiple of 16.
template <int V>
static void score(const float* hidden, const Work& w, const int32_t* item, int n, float* out) {
  lanes h[V];
  for (int j = 0; j < V; j++) h[j] = load(hidden + j * W);
  for (int i = 0; i < n; i += W) {
    lanes two[W / 2];
    for (int q = 0; q < W / 2; q++) {
      const float* left = w.table + (int64_t)item[i + 2 * q] * V * W;
      const float* right = w.table + (int64_t)item[i + 2 * q + 1] * V * W;
      lanes a = h[0] * load(left), b = h[0] * load(right);
      for (int j = 1; j < V; j++) {
        a += h[j] * load(left + j * W);
        b += h[j] * load(right + j * W);
      }
      two[q] = halves(a, b);
    }
    const lanes a = fours(quarters(two[0], two[1]), quarters(two[2], two[3]));
    const lanes b = fours(quarters(two[4], two[5]), quarters(two[6], two[7]));
    store(out + i, pairs(a, b) + w.bias);
  }
}

// The first n of 16 lanes.
static inline mask first(int64_t n) {
  mask lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  return lane < (int32_t)std::min<int64_t>(n, W);
}

// gBCE: scores become slopes in place; the loss is returned. The positive is the first of a row.
static lanes gbce(float* s, int64_t n, bool has_positive, const Work& w) {
  const float share = 1.0f / (w.k + 1);
  lanes loss{};
  for (int64_t i = 0; i < n; i += W) {
    const lanes x = load(s + i), e = exp_of_negative(maximum(x, -x) * -1.0f);
    const lanes tail = log_one_plus(e), small = e / (1.0f + e), large = 1.0f / (1.0f + e);
    lanes part = maximum(x, lanes{}) + tail;  // softplus(x)
    lanes slope = pick(x < 0.0f, small, large);
    if (has_positive && i == 0) {
      part[0] = w.beta * (std::max(-x[0], 0.0f) + tail[0]);
      slope[0] = -w.beta * (x[0] < 0 ? large[0] : small[0]);
    }
    const mask real = first(n - i);
    loss += pick(real, part * share, lanes{});
    store(s + i, pick(real, slope * (share * w.scale), lanes{}));
  }
  return loss;
}

// Sampled softmax over a whole row of n scores, the positive first.
static float softmax(float* s, int64_t n, const Work& w) {
  const float own = s[0];
  float top = own;
  for (int64_t i = 1; i < n; i++) top = std::max(top, s[i]);
  lanes total{};
  for (int64_t i = 0; i < n; i += W) {
    const lanes e = pick(first(n - i), exp_of_negative(load(s + i) - top), lanes{});
    store(s + i, e);
    total += e;
  }
  const float whole = sum(total), factor = w.scale / whole;
  float others = 0;  // 1 − p of the positive, without cancellation
  for (int64_t i = 1; i < n; i++) others += s[i];
  for (int64_t i = 0; i < n; i += W) store(s + i, load(s + i) * factor);
  s[0] = -others * factor;
  return top - own + __builtin_logf(whole);
}

template <int V>
static int run(Work& w) {
  constexpr int64_t D = V * W;
  const int64_t width = w.k + 1, T = w.threads;
  const int64_t tile = w.softmax ? width : 64;  // a tile's rows stay in the first cache
  std::vector<std::vector<int32_t>> cursor(T, std::vector<int32_t>(w.rows));
  std::vector<int32_t> own_begin(w.begin ? 0 : w.rows + 1);
  std::vector<Pair> own_pairs(w.pairs ? 0 : std::min(w.chunk, w.positions) * width);
  int32_t* begin = w.begin ? w.begin : own_begin.data();  // of each item's pairs
  Pair* sorted = w.pairs ? w.pairs : own_pairs.data();
  std::vector<int64_t> count(T);
  std::vector<double> loss(T), d_bias(T);
  std::vector<char> wrong(T);
  std::barrier gate(T);

  auto worker = [&](int64_t me) {
    std::vector<float> slope(width + W);
    std::vector<int32_t> item(width + W);  // what follows the last one is row 0, with slope 0
    auto& mine = cursor[me];
    const int64_t low = w.rows * me / T, high = w.rows * (me + 1) / T;
    for (int64_t start = 0; start < w.positions; start += w.chunk) {
      const int64_t n = std::min(w.chunk, w.positions - start);
      const int64_t from = start + n * me / T, to = start + n * (me + 1) / T;

      // 1. Counting sort: how many pairs has each item, and where do this thread's begin?
      std::fill(mine.begin(), mine.end(), 0);
      auto tally = [&](int64_t i) {
        if ((uint64_t)i < (uint64_t)w.rows) mine[i]++;
        else wrong[me] = 1;
      };
      for (int64_t p = from; p < to; p++)
        if (w.positives[p]) {
          tally(w.positives[p]);
          for (int64_t j = p * w.k; j < (p + 1) * w.k; j++) tally(w.negatives[j]);
        }
      gate.arrive_and_wait();
      if (std::count(wrong.begin(), wrong.end(), 1)) return;
      count[me] = 0;
      for (auto& other : cursor)
        for (int64_t i = low; i < high; i++) count[me] += other[i];
      gate.arrive_and_wait();
      int32_t at = 0;
      for (int64_t t = 0; t < me; t++) at += count[t];
      for (int64_t i = low; i < high; i++) {
        begin[i] = at;
        for (auto& other : cursor) at += std::exchange(other[i], at);
      }
      if (me == T - 1) begin[w.rows] = at;
      gate.arrive_and_wait();

      // 2. Each position: scores, slopes, its own gradient; its pairs go to their items' places.
      for (int64_t p = from; p < to; p++) {
        const float* hidden = w.hidden + p * D;
        if (!w.positives[p]) {  // padding
          std::fill_n(w.d_hidden + p * D, D, 0.0f);
          continue;
        }
        item[0] = w.positives[p];
        for (int64_t j = 0; j < w.k; j++) item[j + 1] = w.negatives[p * w.k + j];
        lanes gradient[V] = {}, slopes{}, part{};
        for (int64_t b = 0; b < width; b += tile) {
          const int64_t m = std::min(tile, width - b);
          score<V>(hidden, w, &item[b], (m + W - 1) / W * W, &slope[0]);
          if (w.softmax) loss[me] += softmax(&slope[0], m, w);
          else part += gbce(&slope[0], m, b == 0, w);
          for (int64_t i = 0; i < m; i += W) slopes += load(&slope[i]);
          for (int64_t i = 0; i < m; i++) {
            const float* row = w.table + (int64_t)item[b + i] * D;
            for (int j = 0; j < V; j++) gradient[j] += slope[i] * load(row + j * W);
            sorted[mine[item[b + i]]++] = {(int32_t)(p - start), slope[i]};
          }
        }
        loss[me] += sum(part);
        d_bias[me] += sum(slopes);
        for (int j = 0; j < V; j++) store(w.d_hidden + p * D + j * W, gradient[j]);
      }
      gate.arrive_and_wait();
      if (!w.d_table) continue;

      // 3. Each item: the sum over its pairs. Threads share the pairs, not the items, equally.
      auto cut = [&](int64_t t) {
        return std::lower_bound(begin, begin + w.rows, (int64_t)begin[w.rows] * t / T) - begin;
      };
      const int64_t last = me == T - 1 ? w.rows : cut(me + 1);
      for (int64_t i = me ? cut(me) : 0; i < last; i++) {
        if (start && begin[i] == begin[i + 1]) continue;
        float* out = w.d_table + i * D;
        lanes gradient[V] = {};
        if (start)
          for (int j = 0; j < V; j++) gradient[j] = load(out + j * W);
        for (int64_t q = begin[i]; q < begin[i + 1]; q++) {
          const float* hidden = w.hidden + (start + sorted[q].position) * D;
          for (int j = 0; j < V; j++) gradient[j] += sorted[q].slope * load(hidden + j * W);
        }
        for (int j = 0; j < V; j++) store(out + j * W, gradient[j]);
      }
      gate.arrive_and_wait();
    }
  };

  together(w.pool, T, worker);
  w.loss = w.d_bias = 0;
  for (int64_t t = 0; t < T; t++) {
    w.loss += loss[t] * w.scale;
    w.d_bias += d_bias[t];
  }
  return std::count(wrong.begin(), wrong.end(), 1) ? 1 : 0;
}

// 0: done; 1: an item lies outside the table; 2: this d was not compiled.
extern "C" int sampled(Work* w, int64_t d) {
  switch (d) {
    case 16: return run<1>(*w);
    case 32: return run<2>(*w);
    case 48: return run<3>(*w);
    case 64: return run<4>(*w);
    case 96: return run<6>(*w);
    case 128: return run<8>(*w);
    case 256: return run<16>(*w);
    default: return 2;
  }
}

// --- the optimisers of a table of which few rows are touched: see rows.py -------------------------

struct Update {  // as native.py's _Update
  float *table, *mean, *square;             // (N, d); without mean Adagrad's, square being (N,)
  const int64_t *rows, *begin, *order;      // (n,), (n + 1,): of each row's values; (m,) which they are
  const float *values, *keep, *rate, *root; // (m, d); (n,): what decay leaves, lr, and √ of Adam's
  const int32_t* pair_begin;                // (N + 1,), or null: more of each row's gradient, as pairs
  const Pair* pairs;                        // of `sampled`
  const float* hidden;                      // (positions, d)
  int64_t n, d, threads;
  float beta2, left, fresh, eps;  // left = 1 − β₁ and fresh = 1 − β₂, to their own last bit
  Pool pool;
};

// Threads share the values equally, or the rows where there are pairs; a row is one thread's, and is
// summed in the pairs' order and the values'.
extern "C" void update(Update* given) {
  const Update& u = *given;
  const int64_t d = u.d;
  auto cut = [&](int64_t t) {
    if (u.pairs) return u.n * t / u.threads;
    return (int64_t)(std::lower_bound(u.begin, u.begin + u.n, u.begin[u.n] * t / u.threads) - u.begin);
  };
  auto worker = [&](int64_t me) {
    std::vector<float> sum(d);
    float* g = sum.data();
    const int64_t last = me == u.threads - 1 ? u.n : cut(me + 1);
    for (int64_t i = me ? cut(me) : 0; i < last; i++) {
      if (i + 2 < last)  // rows lie anywhere: ask for one while two others are worked on
        for (int64_t j = 0; j < d; j += W) {
          const int64_t at = u.rows[i + 2] * d + j;
          __builtin_prefetch(u.table + at, 1);
          if (u.mean) {
            __builtin_prefetch(u.mean + at, 1);
            __builtin_prefetch(u.square + at, 1);
          }
        }
      std::fill_n(g, d, 0.0f);
      if (u.pairs)
        for (int32_t q = u.pair_begin[u.rows[i]]; q < u.pair_begin[u.rows[i] + 1]; q++) {
          const float *hidden = u.hidden + u.pairs[q].position * d, slope = u.pairs[q].slope;
          for (int64_t j = 0; j < d; j++) g[j] += slope * hidden[j];
        }
      for (int64_t q = u.begin[i]; q < u.begin[i + 1]; q++) {
        const float* value = u.values + u.order[q] * d;
        for (int64_t j = 0; j < d; j++) g[j] += value[j];
      }
      const float keep = u.keep[i], rate = u.rate[i];
      float* w = u.table + u.rows[i] * d;
      if (!u.mean) {
        float& total = u.square[u.rows[i]];
        double squares = 0;
        for (int64_t j = 0; j < d; j++) squares += (double)g[j] * g[j];
        total += (float)(squares / d);
        const float step = rate / (std::sqrt(total) + u.eps);
        for (int64_t j = 0; j < d; j++) w[j] = w[j] * keep - step * g[j];
        continue;
      }
      float *m = u.mean + u.rows[i] * d, *v = u.square + u.rows[i] * d;
      const float root = u.root[i];
      for (int64_t j = 0; j < d; j++) {
        m[j] += u.left * (g[j] - m[j]);
        v[j] = u.beta2 * v[j] + u.fresh * g[j] * g[j];
        w[j] = w[j] * keep - rate * m[j] / (std::sqrt(v[j]) / root + u.eps);
      }
    }
  };
  together(u.pool, u.threads, worker);
}

// --- the whole catalogue for many users: ranks of targets, and the first items --------------------
//
// A first look multiplies 8-bit numbers, sixteen items at once, and knows how far it may be from the
// score: |h·t − h̃·t̃| ≤ |h − h̃||t| + |h̃||t − t̃| and rounding. Only items whose place that leaves open
// are scored in float32, by `score`, so that the result is that of float32 scores. See scan.py.

constexpr int LOOK = 12;  // users beside each other: 24 sums in registers

// x (d,) -> d / 4 words of four 8-bit numbers, x ≈ scale · (word's bytes − shift), and what of it counts.
struct Coarse {
  float scale;
  double length, error;  // |x|, |x − x̃|
  int32_t sum;           // of the numbers
};
template <int D>
static Coarse coarse(const float* x, int shift, uint32_t* words, int64_t stride) {
  float largest = 0;
  for (int j = 0; j < D; j++) largest = std::max(largest, __builtin_fabsf(x[j]));
  const float scale = largest > 1e-30f ? largest / 127 : 1.0f;
  double length = 0, error = 0;
  int32_t total = 0;
  for (int p = 0; p < D / 4; p++) {
    uint32_t word = 0;
    for (int q = 0; q < 4; q++) {
      const float value = x[4 * p + q];
      const int32_t whole = (int32_t)__builtin_rintf(value / scale);
      const double off = value - (double)scale * whole;
      word |= ((uint32_t)(whole + shift) & 0xff) << 8 * q;
      length += (double)value * value;
      error += off * off;
      total += whole;
    }
    words[p * stride] = word;
  }
  return {scale, __builtin_sqrt(length), __builtin_sqrt(error), total};
}

// sum + the products of 16 items' four signed bytes with one user's four unsigned bytes.
static inline mask multiply(mask sum, mask items, uint32_t user) {
#ifdef __AVX512VNNI__
  return (mask)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(user), (__m512i)items);
#else
  for (int q = 0; q < 4; q++) sum += (items << (24 - 8 * q) >> 24) * (int32_t)(user >> 8 * q & 0xff);
  return sum;
#endif
}

struct Table {  // as scan.py's _Table
  const float* rows;              // (n, d); row 0 is no item
  uint32_t* words;                // (n / 16, rounded up to even; d / 4; 16)
  int32_t* start;                 // (the same n) −128 times the sum of an item's numbers
  float *scale, *length, *error;  // the same
  int64_t n, threads;
  Pool pool;
};

struct Scan {  // as scan.py's _Scan
  const Table* table;
  const float* hidden;              // (users, d)
  const int64_t* targets;           // (users,); 0: none
  const int64_t *seen, *seen_from;  // user u's: seen[seen_from[u]] … , ascending
  int64_t* ranks;                   // (users,); 0 where there is no target
  int64_t* top;                     // (users, most), best first; 0 where there are no more
  float* scores;                    // (users, most) of these
  int64_t users, most;
  float bias;
};

template <int V>
static void pack(Table& t) {
  constexpr int D = V * W;
  const int64_t padded = (t.n + 2 * W - 1) / (2 * W) * (2 * W);
  const float nothing[D] = {};
  auto worker = [&](int64_t me) {
    for (int64_t i = padded * me / t.threads; i < padded * (me + 1) / t.threads; i++) {
      const float* row = i < t.n ? t.rows + i * D : nothing;
      const Coarse c = coarse<D>(row, 0, t.words + i / W * (D / 4) * W + i % W, W);
      t.scale[i] = c.scale;
      t.length[i] = c.length;
      t.error[i] = c.error;
      t.start[i] = -128 * c.sum;
    }
  };
  together(t.pool, t.threads, worker);
}

struct Place {
  float score;
  int64_t item;
};
static inline bool before(const Place& a, const Place& b) {  // the rule of ranking.rank_of_targets
  return a.score > b.score || (a.score == b.score && a.item < b.item);
}

// A user's share of the work: what is known, and the items that wait for their float32 score.
struct User {
  Place target;
  int64_t rank;
  std::vector<Place> first;  // a heap, the worst on top
  int waiting;
  int32_t item[3 * W];       // OPEN where it counts for the rank, if it is before the target
};
constexpr int32_t OPEN = INT32_MIN;

// Which lanes of a are above those of b?
static inline uint32_t above(lanes a, lanes b) {
#ifdef __AVX512F__
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#else
  const mask m = a > b;
  uint32_t bits = 0;
  for (int i = 0; i < W; i++) bits |= (m[i] & 1u) << i;
  return bits;
#endif
}

// Writes the lanes `bits` of base, base + 1 … one after another, with OPEN those that are also in `open`.
static inline void append(int32_t* out, int32_t base, uint32_t bits, uint32_t open) {
#ifdef __AVX512F__
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i item = _mm512_add_epi32(lane, _mm512_set1_epi32(base));
  const __m512i told = _mm512_mask_or_epi32(item, open, item, _mm512_set1_epi32(OPEN));
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(bits, told));
#else
  for (; bits; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    *out++ = (base + lane) | (open >> lane & 1 ? OPEN : 0);
  }
#endif
}

template <int V>
static void scan(Scan& s) {
  constexpr int D = V * W, P = D / 4;
  const Table& t = *s.table;
  const int64_t blocks = (t.n + 2 * W - 1) / (2 * W);
  const float unit = 6e-8f;  // float32 rounds to within this share
  const float longest = *std::max_element(t.length, t.length + t.n);
  const int64_t each = (s.users + t.threads * LOOK - 1) / (t.threads * LOOK) * LOOK;
  const int64_t part = std::min<int64_t>(64 * LOOK, each);  // their words stay in the second cache
  const float nothing[D] = {};
  std::atomic<int64_t> next{0};

  Work exact{};
  exact.table = t.rows;
  exact.bias = s.bias;
  auto worker = [&](int64_t) {
    std::vector<uint32_t> words(part * P);
    std::vector<float> scale(part), length(part), own(part), worst(part);  // all but the first over scale
    std::vector<User> users(part);
    for (int64_t from; (from = next.fetch_add(part)) < s.users;) {
      const int64_t n = std::min(part, s.users - from);
      auto seen = [&](int64_t u) { return std::pair(s.seen + s.seen_from[from + u], s.seen + s.seen_from[from + u + 1]); };
      auto scores = [&](int64_t u, const int32_t* items, float* out) {
        score<V>(s.hidden + (from + u) * D, exact, items, W, out);
      };
      float share = 0, least = INFINITY;  // |h − h̃| / |h| at most; |h| at least
      for (int64_t u = 0; u < part; u++) {
        const Coarse c = coarse<D>(u < n ? s.hidden + (from + u) * D : nothing, 128, &words[u / LOOK * P * LOOK + u % LOOK], LOOK);
        scale[u] = c.scale;
        length[u] = std::max(c.length / c.scale, 1e-6);
        own[u] = worst[u] = INFINITY;
        if (u >= n) continue;
        share = std::max<float>(share, c.error / c.scale / length[u]);
        least = std::min<float>(least, length[u] * c.scale);
        const int64_t item = s.targets[from + u];
        users[u].target = {INFINITY, item};
        users[u].rank = item ? 1 : 0;
        users[u].first.clear();
        users[u].waiting = 0;
        if (item) {
          const int32_t alone[W] = {(int32_t)item};
          float out[W];
          scores(u, alone, out);
          users[u].target.score = out[0];
          own[u] = (out[0] - s.bias) / scale[u];
        }
        if (s.most) worst[u] = -INFINITY;
      }
      // The bound over |h|: (share + rounding) · |t| + |t − t̃| · (1 + share) + what is the same for all.
      const float rounding = 8 * (D + 4) * unit, always = rounding * (longest + __builtin_fabsf(s.bias) / least) + 1e-30f;

      auto settle = [&](int64_t u, int n) {  // the first n of those that wait, at most 16
        User& user = users[u];
        float out[W];
        int32_t item[W] = {};
        uint32_t open = 0;
        for (int i = 0; i < n; i++) {
          item[i] = user.item[i] & ~OPEN;
          open |= (uint32_t)(user.item[i] < 0) << i;
        }
        scores(u, item, out);
        const lanes found = load(out), target = all(user.target.score);
        const uint32_t higher = above(found, target), lower = above(target, found);
        user.rank += __builtin_popcount(higher & open);
        for (uint32_t equal = open & ~higher & ~lower; equal; equal &= equal - 1)
          user.rank += item[__builtin_ctz(equal)] < user.target.item;
        auto& heap = user.first;
        for (uint32_t left = s.most ? (1u << n) - 1 : 0; left; left &= left - 1) {
          const Place place{out[__builtin_ctz(left)], item[__builtin_ctz(left)]};
          const bool full = (int64_t)heap.size() == s.most;
          if (full && !before(place, heap[0])) continue;
          const auto [begin, end] = seen(u);
          if (place.item != user.target.item && std::binary_search(begin, end, place.item)) continue;
          if (full) {
            std::pop_heap(heap.begin(), heap.end(), before);
            heap.pop_back();
          }
          heap.push_back(place);
          std::push_heap(heap.begin(), heap.end(), before);
          if ((int64_t)heap.size() == s.most) worst[u] = (heap[0].score - s.bias) / scale[u];
        }
        user.waiting -= n;
        std::copy_n(user.item + n, user.waiting, user.item);
      };

      for (int64_t b = 0; b < blocks; b++) {
        const mask *items = (const mask*)(t.words + b * 2 * P * W), *start = (const mask*)(t.start + b * 2 * W);
        lanes of_item[2], bound[2];
        uint32_t real[2];
        for (int v = 0; v < 2; v++) {
          const int64_t base = (2 * b + v) * W;
          of_item[v] = load(t.scale + base);
          bound[v] = load(t.length + base) * (share * 1.001f + rounding) + load(t.error + base) * (1.001f + share) + always;
          real[v] = base + W <= t.n ? 0xffff : base < t.n ? (1u << (t.n - base)) - 1 : 0;
          if (base == 0) real[v] &= ~1u;  // item 0 is none
        }
        for (int64_t u = 0; u < n; u += LOOK) {
          const uint32_t* word = &words[u * P];
          mask sums[LOOK][2];
          for (int i = 0; i < LOOK; i++) sums[i][0] = start[0], sums[i][1] = start[1];
          for (int p = 0; p < P; p++) {
            const mask left = items[p], right = items[P + p];
#pragma GCC unroll 12
            for (int i = 0; i < LOOK; i++) {
              sums[i][0] = multiply(sums[i][0], left, word[p * LOOK + i]);
              sums[i][1] = multiply(sums[i][1], right, word[p * LOOK + i]);
            }
          }
#pragma GCC unroll 12
          for (int i = 0; i < LOOK; i++)
            for (int v = 0; v < 2; v++) {
              const lanes score = __builtin_convertvector(sums[i][v], lanes) * of_item[v];
              const lanes low = score - bound[v] * length[u + i], high = score + bound[v] * length[u + i];
              const uint32_t sure = above(low, all(own[u + i])) & real[v];
              const uint32_t open = above(high, all(own[u + i])) & real[v] & ~sure;
              const uint32_t enters = above(high, all(worst[u + i])) & real[v];
              User& user = users[u + i];
              user.rank += __builtin_popcount(sure);
              if (!(open | enters)) continue;
              append(user.item + user.waiting, (2 * b + v) * W, open | enters, open);
              user.waiting += __builtin_popcount(open | enters);
              if (user.waiting >= W) settle(u + i, W);
            }
        }
      }

      for (int64_t u = 0; u < n; u++) {
        User& user = users[u];
        settle(u, user.waiting);
        if (user.target.item)
          for (auto [item, end] = seen(u); item < end; item += W) {  // what was seen is not before it
            int32_t some[W] = {};
            float out[W];
            const int m = std::min<int64_t>(W, end - item);
            std::copy_n(item, m, some);
            scores(u, some, out);
            for (int i = 0; i < m; i++)
              if (item[i] != user.target.item && (item + i == seen(u).first || item[i] != item[i - 1]))
                user.rank -= before({out[i], item[i]}, user.target);
          }
        s.ranks[from + u] = user.rank;
        std::sort_heap(user.first.begin(), user.first.end(), before);
        user.first.resize(s.most, {-INFINITY, 0});
        for (int64_t i = 0; i < s.most; i++) {
          s.top[(from + u) * s.most + i] = user.first[i].item;
          s.scores[(from + u) * s.most + i] = user.first[i].score;
        }
      }
    }
  };
  together(t.pool, t.threads, worker);
}

#define FOR_WIDTH(d, f, ...)                 \
  switch (d) {                               \
    case 16: f<1>(__VA_ARGS__); return 0;    \
    case 32: f<2>(__VA_ARGS__); return 0;    \
    case 48: f<3>(__VA_ARGS__); return 0;    \
    case 64: f<4>(__VA_ARGS__); return 0;    \
    case 96: f<6>(__VA_ARGS__); return 0;    \
    case 128: f<8>(__VA_ARGS__); return 0;   \
    case 256: f<16>(__VA_ARGS__); return 0;  \
    default: return 2;                       \
  }

// 0: done; 2: this d was not compiled.
extern "C" int pack_table(Table* table, int64_t d) { FOR_WIDTH(d, pack, *table) }
extern "C" int scan_table(Scan* s, int64_t d) { FOR_WIDTH(d, scan, *s) }
// Are 8-bit products faster than float32's here?
extern "C" int scan_is_fast() {
#ifdef __AVX512VNNI__
  return 1;
#else
  return 0;
#endif
}
