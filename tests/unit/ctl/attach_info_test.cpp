#include "ctl/attach_info.h"

#include "tests/unit/control/facts.h"

namespace replicad::ctl {
namespace {

VolumeView primary_view(const nlohmann::json& json) {
  auto view = parse_volume(json);
  REQUIRE(view.has_value());
  return *view;
}

TEST_CASE("attach info: QEMU options and libvirt XML name socket and export, and stop on errors") {
  const auto infos = attach_infos(primary_view(control_test::volume_json("a")));
  REQUIRE(infos.has_value());
  REQUIRE(infos->size() == 1);
  const AttachInfo& info = infos->front();
  REQUIRE(info.qemu_arguments.size() == 6);
  CHECK(info.qemu_arguments[0] == "-blockdev");
  const auto blockdev = nlohmann::json::parse(info.qemu_arguments[1]);
  CHECK(blockdev ==
        nlohmann::json::parse(R"({"driver":"nbd","node-name":"vda","server":{"type":"unix",
      "path":"/run/replica/vm1.sock"},"export":"vda","reconnect-delay":300,
      "open-timeout":30,"discard":"unmap",
      "detect-zeroes":"unmap","cache":{"direct":true}})"));
  CHECK(info.qemu_arguments[5] ==
        "virtio-blk-pci,drive=vda,iothread=iothread-vda,werror=stop,rerror=stop");
  CHECK(info.libvirt_xml.find("<source protocol='nbd' name='vda'>") != std::string::npos);
  CHECK(info.libvirt_xml.find("<host transport='unix' socket='/run/replica/vm1.sock'/>") !=
        std::string::npos);
  CHECK(info.libvirt_xml.find("error_policy='stop' rerror_policy='stop'") != std::string::npos);
}

TEST_CASE(
    "attach info: a disk's name that QEMU would not take is replaced, the export's name stays") {
  auto json = control_test::volume_json("a");
  json["disks"][0]["name"] = "0disk";
  json["export"]["uris"] = {{"0disk", "nbd+unix:///0disk?socket=/run/replica/vm1.sock"}};
  const auto infos = attach_infos(primary_view(json));
  REQUIRE(infos.has_value());
  CHECK(nlohmann::json::parse(infos->front().qemu_arguments[1])["node-name"] == "disk0");
  CHECK(nlohmann::json::parse(infos->front().qemu_arguments[1])["export"] == "0disk");
}

TEST_CASE("attach info: strings are quoted for the shell and for XML") {
  CHECK(shell_quote("it's") == "'it'\\''s'");
  CHECK(xml_escape("<a href='x'>\"&") == "&lt;a href=&apos;x&apos;&gt;&quot;&amp;");
  auto json = control_test::volume_json("a");
  json["export"]["socket"] = "/run/it's <here>.sock";
  const auto infos = attach_infos(primary_view(json));
  REQUIRE(infos.has_value());
  CHECK(infos->front().libvirt_xml.find("socket='/run/it&apos;s &lt;here&gt;.sock'") !=
        std::string::npos);
  CHECK(attach_text(*infos, "qemu").find("it'\\''s") != std::string::npos);
}

TEST_CASE("attach info: a volume that is not served is refused with what to do") {
  auto json = control_test::volume_json("a");
  json["export"] = nullptr;
  const auto infos = attach_infos(primary_view(json));
  REQUIRE(!infos.has_value());
  CHECK(infos.error().code == Errc::refused);
  CHECK(infos.error().hint.find("activate vm1") != std::string::npos);
}

TEST_CASE("attach info: an answer without socket or URI is an error") {
  auto json = control_test::volume_json("a");
  json["export"]["socket"] = "relative";
  CHECK(attach_infos(primary_view(json)).error().code == Errc::protocol);
  json = control_test::volume_json("a");
  json["export"]["uris"] = nlohmann::json::object();
  CHECK(attach_infos(primary_view(json)).error().code == Errc::protocol);
  json = control_test::volume_json("a");
  json["disks"][0]["name"] = "vda\n-monitor stdio";
  CHECK(attach_infos(primary_view(json)).error().code == Errc::protocol);
}

}  // namespace
}  // namespace replicad::ctl
