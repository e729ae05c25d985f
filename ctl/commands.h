#pragma once
// The commands of replicactl. Each is a function over the Context and its own options; commands.cpp
// is the table.

#include <string_view>
#include <vector>

#include <boost/program_options/options_description.hpp>
#include <boost/program_options/variables_map.hpp>

#include "ctl/context.h"

namespace replicad::ctl {

using OptionSpecs = boost::program_options::options_description;
using OptionValues = boost::program_options::variables_map;

struct Command {
  const char* name;
  const char* arguments;  ///< as in a usage line, options left out
  const char* summary;    ///< one line
  const char* details;    ///< what --help adds
  std::size_t arguments_min;
  std::size_t arguments_max;
  bool names_volume;                  ///< its first argument is a volume's name
  void (*add_options)(OptionSpecs&);  ///< may be null
  Status (*run)(Context&, const OptionValues&);
};

[[nodiscard]] const std::vector<Command>& all_commands();
/// nullptr if there is none of that name.
[[nodiscard]] const Command* find_command(std::string_view name);

/// "" if the option was not given.
[[nodiscard]] std::string text_option(const OptionValues& values, const char* name);
/// --deadline in ms, `otherwise` if it was not given. Errors: Errc::invalid_argument.
[[nodiscard]] Result<std::uint32_t> deadline_option(const OptionValues& values,
                                                    std::uint32_t otherwise);
/// A string of a host's answer, "" if there is none of that name. Not printable yet.
[[nodiscard]] std::string text_of(const nlohmann::json& answer, const char* name);

void add_place_options(OptionSpecs& specs);
void add_create_options(OptionSpecs& specs);
void add_status_options(OptionSpecs& specs);
void add_wait_options(OptionSpecs& specs);
void add_attach_info_options(OptionSpecs& specs);
void add_attach_options(OptionSpecs& specs);
void add_detach_options(OptionSpecs& specs);
void add_switchover_options(OptionSpecs& specs);
void add_handover_options(OptionSpecs& specs);
void add_failover_options(OptionSpecs& specs);
void add_resolve_options(OptionSpecs& specs);
void add_resync_options(OptionSpecs& specs);
void add_verify_options(OptionSpecs& specs);
void add_readmit_options(OptionSpecs& specs);
void add_delete_options(OptionSpecs& specs);
void add_add_replica_options(OptionSpecs& specs);
void add_remove_replica_options(OptionSpecs& specs);
void add_lost_writes_options(OptionSpecs& specs);
void add_import_options(OptionSpecs& specs);

[[nodiscard]] Status run_hosts(Context& context, const OptionValues& values);
[[nodiscard]] Status run_place(Context& context, const OptionValues& values);
[[nodiscard]] Status run_create(Context& context, const OptionValues& values);
[[nodiscard]] Status run_list(Context& context, const OptionValues& values);
[[nodiscard]] Status run_status(Context& context, const OptionValues& values);
[[nodiscard]] Status run_wait(Context& context, const OptionValues& values);
[[nodiscard]] Status run_activate(Context& context, const OptionValues& values);
[[nodiscard]] Status run_deactivate(Context& context, const OptionValues& values);
[[nodiscard]] Status run_restart(Context& context, const OptionValues& values);
[[nodiscard]] Status run_attach_info(Context& context, const OptionValues& values);
[[nodiscard]] Status run_attach(Context& context, const OptionValues& values);
[[nodiscard]] Status run_detach(Context& context, const OptionValues& values);
[[nodiscard]] Status run_switchover(Context& context, const OptionValues& values);
[[nodiscard]] Status run_handover(Context& context, const OptionValues& values);
[[nodiscard]] Status run_failover(Context& context, const OptionValues& values);
[[nodiscard]] Status run_resolve(Context& context, const OptionValues& values);
[[nodiscard]] Status run_set(Context& context, const OptionValues& values);
[[nodiscard]] Status run_resync(Context& context, const OptionValues& values);
[[nodiscard]] Status run_verify(Context& context, const OptionValues& values);
[[nodiscard]] Status run_readmit(Context& context, const OptionValues& values);
[[nodiscard]] Status run_add_replica(Context& context, const OptionValues& values);
[[nodiscard]] Status run_remove_replica(Context& context, const OptionValues& values);
[[nodiscard]] Status run_delete(Context& context, const OptionValues& values);
[[nodiscard]] Status run_lost_writes(Context& context, const OptionValues& values);
[[nodiscard]] Status run_import(Context& context, const OptionValues& values);

}  // namespace replicad::ctl
