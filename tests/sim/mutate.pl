#!/usr/bin/perl
# Writes copies of C++ sources in which each condition can be switched off or on from outside, and each part of one left
# out, one at a time:
#   mutate.pl OUT_DIR SOURCE...
# OUT_DIR/mutants.txt gets a line for each mutant: number, tab, name. A name is made of the file, the function and the
# text of the condition, so that it stays what it is when other code changes. The copies look at the global
# `replicad_mutant`; with -1 they do what the originals do. They count how often each condition was false and true, and
# write that to the file $RD_CONDITIONS names, at exit.
use strict;
use warnings;
use File::Basename qw(basename);

my ($out, @sources) = @ARGV;
my @names;
my %seen;
my $where;  # file and function of what is being looked at

sub mutant {
  my ($what) = @_;
  my $name = "$where: $what";
  $name =~ s/\s+/ /g;
  $name .= " #" . ($seen{$name} + 1) if $seen{$name}++;
  push @names, $name;
  return $#names;
}

# Position behind the parenthesis that closes the one at $at.
sub closing {
  my ($text, $at) = @_;
  my $depth = 0;
  for (my $i = $at; $i < length $text; ++$i) {
    my $c = substr $text, $i, 1;
    ++$depth if $c eq '(';
    return $i + 1 if $c eq ')' && --$depth == 0;
  }
  die "no closing parenthesis";
}

# Positions at which $pattern matches outside of all brackets.
sub outside {
  my ($text, $pattern) = @_;
  my ($depth, @found) = (0);
  for (my $i = 0; $i < length $text; ++$i) {
    my $c = substr $text, $i, 1;
    ++$depth if $c =~ /[({\[]/;
    --$depth if $c =~ /[)}\]]/;
    push @found, $i if $depth == 0 && substr($text, $i) =~ /^$pattern/;
  }
  return @found;
}

# The operands of the outermost && (or ||) of $text; the text alone if there is none.
sub operands {
  my ($text, $operator) = @_;
  my (@parts, $last);
  $last = 0;
  for my $at (outside($text, quotemeta $operator)) {
    push @parts, substr $text, $last, $at - $last;
    $last = $at + 2;
  }
  return (@parts, substr $text, $last);
}

# $condition with a mutant for each part of it that may be left out.
sub parts_switched {
  my ($kind, $condition) = @_;
  return $condition if outside($condition, '\?');
  for my $operator ('||', '&&') {
    my @parts = operands($condition, $operator);
    next if @parts < 2;
    return join " $operator ", map {
      my ($before, $part, $behind) = /^(\s*)(.*?)(\s*)$/s;
      my $off = mutant("$kind ($condition) without ($part)");
      my $inner = $part;
      if ($part =~ /^\(/ && closing($part, 0) == length $part) {
        $inner = '(' . parts_switched($kind, substr($part, 1, -1)) . ')';
      } elsif ($operator eq '||') {
        $inner = parts_switched($kind, $part);
      }
      $operator eq '||' ? "(replicad_mutant != $off && ($inner))"
                        : "(replicad_mutant == $off || ($inner))";
    } @parts;
  }
  return $condition;
}

# `condition` or, for one mutant each, false and true.
sub switched {
  my ($kind, $condition) = @_;
  my $off = mutant("$kind ($condition) never");
  if ($kind eq 'while') {
    return "replicad_seen($off, replicad_mutant != $off && (" . parts_switched($kind, $condition) . "))";
  }
  my $on = mutant("$kind ($condition) always");
  return "replicad_seen($off, replicad_mutant == $on || (replicad_mutant != $off && ("
    . parts_switched($kind, $condition) . ")))";
}

# Beginnings and names of the functions in $text.
sub functions {
  my ($text) = @_;
  my @found;
  while ($text =~ /^(?!namespace|struct|class|enum|using|constexpr|template|const |static_assert|\/|#|\}|\s)[^\n;={]*?((?:\w+::)*~?\w+)\(([^\n]*)/mg) {
    my ($at, $name, $rest) = ($-[0], $1, $2);
    $name .= "($1)" if $name =~ /on_event$/ && $rest =~ /_event::(\w+)/;
    push @found, [$at, $name];
  }
  while ($text =~ /^  (?!(?:if|for|while|switch|return|else) ?)[\w:<>,*& ]*?\b(\w+)\([^\n;]*\{$/mg) {  # within a class
    my ($at, $name) = ($-[0], $1);
    push @found, [$at, $name] if $name !~ /_$/;  # no initialiser of a member
  }
  return sort { $a->[0] <=> $b->[0] } @found;
}

sub is_boolean {
  my ($text) = @_;
  return 0 if outside($text, '\?') || outside($text, ',') || $text =~ /^\s*(\{|tl::|fail|co_)/;
  return 1 if $text =~ /^\s*!/;
  return scalar outside($text, '(?: (?:==|!=|<|<=|>|>=|&&|\|\|) )');
}

for my $source (@sources) {
  open my $in, '<', $source or die "$source: $!";
  my $text = do { local $/; <$in> };
  my $file = basename $source;
  my @functions = functions($text);
  my $result = "extern int replicad_mutant;\nextern unsigned long replicad_counts[][2];\n"
    . "static inline bool replicad_seen(int number, bool value) { ++replicad_counts[number][value]; return value; }\n";
  my $last = 0;
  while ($text =~ /\b(if|while) \(|\bconst bool (\w+) =\s|\b(return) /g) {
    my $begin = $+[0];
    my ($keyword, $variable, $return) = ($1, $2, $3);
    my $line_begin = rindex($text, "\n", $-[0]) + 1;
    next if substr($text, $line_begin, $-[0] - $line_begin) =~ m{//};
    my @before = grep { $_->[0] <= $begin } @functions;
    $where = @before ? "$file $before[-1][1]" : $file;
    my $end;
    if ($keyword) {
      $end = closing($text, $begin - 1) - 1;
      # if (const auto x = f(); condition)
      my @semicolons = outside(substr($text, $begin, $end - $begin), ';');
      $begin += $semicolons[-1] + 1 if @semicolons;
    } else {
      $end = $begin + (outside(substr($text, $begin, 3000), ';'))[0];
    }
    my $condition = substr $text, $begin, $end - $begin;
    if ($keyword && $condition =~ /^[^(\[]*(?<![=<>!])=(?!=)/) {  # a declaration
      next;
    }
    next if $return && !is_boolean($condition);
    $condition =~ s/^\s+//;
    $result .= substr($text, $last, $begin - $last) . switched($variable // $return // $keyword, $condition);
    $last = $end;
    pos($text) = $end;
  }
  $result .= substr $text, $last;
  open my $copy, '>', "$out/$file" or die "$out/$file: $!";
  print $copy $result;
}

open my $list, '>', "$out/mutants.txt" or die "$out/mutants.txt: $!";
print $list "$_\t$names[$_]\n" for 0 .. $#names;
open my $switch, '>', "$out/mutant_switch.cpp" or die "$out/mutant_switch.cpp: $!";
my $count = @names;
my @conditions = grep { $names[$_] =~ / never( #\d+)?$/ } 0 .. $#names;
print $switch "constexpr int mutants = $count;\nconstexpr int conditions[] = {" . join(', ', @conditions) . "};\n";
print $switch <<'END';
#include <cstdio>
#include <cstdlib>
extern int replicad_mutant;
extern unsigned long replicad_counts[mutants][2];
unsigned long replicad_counts[mutants][2];
namespace {
void write_conditions() {
  std::FILE* file = std::fopen(std::getenv("RD_CONDITIONS"), "w");
  if (file == nullptr) return;
  for (const int number : conditions)
    std::fprintf(file, "%d\t%lu\t%lu\n", number, replicad_counts[number][0], replicad_counts[number][1]);
  std::fclose(file);
}
}  // namespace
int replicad_mutant = [] {
  if (std::getenv("RD_CONDITIONS") != nullptr) std::atexit(write_conditions);
  const char* number = std::getenv("RD_MUTANT");
  return number == nullptr ? -1 : std::atoi(number);
}();
END
