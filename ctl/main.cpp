// replicactl: see replicactl(8).

#include <csignal>
#include <iostream>

#include <unistd.h>

#include "ctl/run.h"

int main(int argc, char** argv) {
  // A reader that goes away (`| head`) or a daemon that hangs up is an error of that write, not of
  // the process.
  std::signal(SIGPIPE, SIG_IGN);
  replicad::ctl::Terminal terminal{std::cin,
                                   std::cout,
                                   std::cerr,
                                   ::isatty(STDIN_FILENO) == 1,
                                   ::isatty(STDOUT_FILENO) == 1,
                                   ::isatty(STDERR_FILENO) == 1};
  return replicad::ctl::run_replicactl(std::vector<std::string>(argv + 1, argv + argc), terminal);
}
