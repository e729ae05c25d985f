#!/usr/bin/perl
# Writes copies of C++ sources in which each condition can be switched off or on from outside, and each part of one left
# out, one at a time:
#   mutate.pl OUT_DIR FILE...
# Conditions are those of `if`, `while` and `?:`, and what is boolean behind `return`, `bool x =`, `x =` and `.x =`.
# OUT_DIR/mutants.txt gets a line for each mutant: number, tab, name. A name is made of the file, the function and the
# text of the condition, so that it stays what it is when other code changes. The copies look at the global
# `replicad_mutant`; with -1 they do what the originals do. They count how often each condition was false and true, and
# write that to the file $RD_CONDITIONS names, at exit. Headers are only looked at: a condition in one cannot be switched,
# so it is an error. A function that does nothing but compare two things may be there: the conditions that use it are
# switched.
use strict;
use warnings;
use File::Basename qw(basename);

my ($out, @sources) = @ARGV;
my @names;
my %seen;
my $where;     # file and function of what is being looked at
my $text;      # of the file
my @inserted;  # [position, code, 1 if it closes what it stands behind], an outer condition before the ones within it

sub mutant {
  my ($what) = @_;
  my $name = "$where: $what";
  $name =~ s/\s+/ /g;
  $name .= " #$seen{$name}" if ++$seen{$name} > 1;
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

# Positions at which $pattern matches outside of all brackets, up to a bracket that closes one before $text.
sub outside {
  my ($text, $pattern) = @_;
  my ($depth, @found) = (0);
  for (my $i = 0; $i < length $text; ++$i) {
    my $c = substr $text, $i, 1;
    ++$depth if $c =~ /[({\[]/;
    last if $c =~ /[)}\]]/ && --$depth < 0;
    push @found, $i if $depth == 0 && substr($text, $i) =~ /^$pattern/;
  }
  return @found;
}

# The operands of the outermost && (or ||) of $text, as [position, length]; the text alone if there is none.
sub operands {
  my ($text, $operator) = @_;
  my (@parts, $last);
  $last = 0;
  for my $at (outside($text, quotemeta $operator)) {
    push @parts, [$last, $at - $last];
    $last = $at + 2;
  }
  return (@parts, [$last, length($text) - $last]);
}

# Puts code around $length characters at $begin.
sub surround {
  my ($begin, $length, $before, $behind) = @_;
  push @inserted, [$begin, $before, 0], [$begin + $length, $behind, 1];
}

# Makes a mutant for each part of the condition that may be left out.
sub switch_parts {
  my ($kind, $begin, $length) = @_;
  my $condition = substr $text, $begin, $length;
  return if outside($condition, '\?');
  for my $operator ('||', '&&') {
    my @parts = operands($condition, $operator);
    next if @parts < 2;
    for (@parts) {
      my ($at, $size) = @$_;
      my ($before, $part) = substr($condition, $at, $size) =~ /^(\s*)(.*?)\s*$/s;
      $at += $begin + length $before;
      my $off = mutant("$kind ($condition) without ($part)");
      surround($at, length $part, $operator eq '||' ? "(replicad_mutant != $off && (" : "(replicad_mutant == $off || (", '))');
      if ($part =~ /^\(/ && closing($part, 0) == length $part) {
        switch_parts($kind, $at + 1, length($part) - 2);
      } elsif ($operator eq '||') {
        switch_parts($kind, $at, length $part);
      }
    }
    return;
  }
}

# Makes the condition, for one mutant each, false and true.
sub switch_condition {
  my ($kind, $begin, $length) = @_;
  my $condition = substr $text, $begin, $length;
  my $off = mutant("$kind ($condition) never");
  my $on = $kind eq 'while' ? -2 : mutant("$kind ($condition) always");
  surround($begin, $length, "replicad_seen($off, replicad_mutant == $on || (replicad_mutant != $off && (", ')))');
  switch_parts($kind, $begin, $length);
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

# Where the condition of the ?: begins whose question mark is at $at.
sub choice_begin {
  my ($at) = @_;
  my $depth = 0;
  for (my $i = $at; $i > 0; --$i) {
    my $c = substr $text, $i - 1, 1;
    ++$depth if $c =~ /[)}\]]/;
    return $i if $c =~ /[({\[]/ && --$depth < 0;
    next if $depth != 0 || substr($text, $i, 1) eq '=';
    return $i if $c =~ /[,;]/ || substr($text, 0, $i) =~ /(\breturn|\s[|&+-]?=| [?:])$/;
  }
}

# Switches all conditions in $text, that of $file.
sub switch_all {
  my ($file) = @_;
  my @functions = functions($text);
  while ($text =~ /\b(if|while) \(|\bbool (\w+) =\s|^\s+([\w.>-]+) [|&]?=\s|\.(\w+) =\s|\b(return)\s| (\?) /mg) {
    my $begin = $+[0];
    my ($keyword, $variable, $choice) = ($1, $2 // $3 // $4 // $5, $6);
    my $is_boolean = defined $2;
    my $line_begin = rindex($text, "\n", $begin - 2) + 1;
    next if substr($text, $line_begin, $begin - $line_begin) =~ m{//};
    my @before = grep { $_->[0] <= $begin } @functions;
    $where = @before ? "$file $before[-1][1]" : $file;
    my $end;
    if ($keyword) {
      $end = closing($text, $begin - 1) - 1;
      # if (const auto x = f(); condition)
      my @semicolons = outside(substr($text, $begin, $end - $begin), ';');
      $begin += $semicolons[-1] + 1 if @semicolons;
    } elsif ($choice) {
      $end = $begin - 3;
      $begin = choice_begin($end);
      --$end while substr($text, $end - 1, 1) =~ /\s/;
      $keyword = 'choice';
    } else {
      my $rest = substr($text, $begin, 3000);
      $end = $begin + ((outside($rest, '[;,]'))[0] // (outside($rest, '[)}\]]'))[0] // next);
    }
    ++$begin while substr($text, $begin, 1) =~ /\s/;
    my $condition = substr $text, $begin, $end - $begin;
    if ($keyword && $condition =~ /^[^(\[]*(?<![=<>!])=(?!=)/) {  # a declaration
      next;
    }
    next if $variable && !$is_boolean && !is_boolean($condition);
    next if $condition =~ /^(true|false)$/;
    next if $file =~ /\.h$/ && substr($text, 0, $begin) =~ /\{ return $/ && $condition =~ /^\w+ [!=]= [\w:]+$/;
    switch_condition($variable // $keyword, $begin, length $condition);
  }
}

for my $source (@sources) {
  open my $in, '<', $source or die "$source: $!";
  $text = do { local $/; <$in> };
  @inserted = ();
  my $count = @names;
  switch_all(basename $source);
  die "conditions in a header are not switched, move them: ", join(', ', @names[$count .. $#names]), "\n"
    if $source =~ /\.h$/ && @names > $count;
  next if $source =~ /\.h$/;
  my $result = "extern int replicad_mutant;\nextern unsigned long replicad_counts[][2];\n"
    . "static inline bool replicad_seen(int number, bool value) { ++replicad_counts[number][value]; return value; }\n";
  my $last = 0;
  my @order = sort {
    $inserted[$a][0] <=> $inserted[$b][0] || $inserted[$b][2] <=> $inserted[$a][2] ||
      ($inserted[$a][2] ? $b <=> $a : $a <=> $b)
  } 0 .. $#inserted;
  for (@inserted[@order]) {
    my ($at, $code) = @$_;
    $result .= substr($text, $last, $at - $last) . $code;
    $last = $at;
  }
  $result .= substr $text, $last;
  my $file = "$out/" . basename $source;
  open my $copy, '>', $file or die "$file: $!";
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
