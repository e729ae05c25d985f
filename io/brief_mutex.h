#pragma once
// A mutex for critical sections of less than a microsecond: whoever finds it taken looks again for a moment before it
// sleeps. Any thread.

#include <pthread.h>

namespace replicad {

class BriefMutex {
 public:
  BriefMutex() {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&mutex_, &attributes);
    pthread_mutexattr_destroy(&attributes);
  }
  BriefMutex(const BriefMutex&) = delete;
  BriefMutex& operator=(const BriefMutex&) = delete;
  BriefMutex(BriefMutex&&) = delete;
  BriefMutex& operator=(BriefMutex&&) = delete;
  ~BriefMutex() { pthread_mutex_destroy(&mutex_); }

  void lock() { pthread_mutex_lock(&mutex_); }
  void unlock() { pthread_mutex_unlock(&mutex_); }

 private:
  pthread_mutex_t mutex_{};
};

}  // namespace replicad
