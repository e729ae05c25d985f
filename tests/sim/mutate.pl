#!/usr/bin/perl
# Writes copies of C++ sources in which each condition can be switched off or on from outside, one at a time:
#   mutate.pl OUT_DIR SOURCE...
# OUT_DIR/mutants.txt gets a line for each mutant: number, tab, "file: what is changed". The copies look at the global
# `replicad_mutant`; with -1 they do what the originals do.
use strict;
use warnings;
use File::Basename qw(basename);

my ($out, @sources) = @ARGV;
my @names;
my %seen;

sub mutant {
  my ($file, $what) = @_;
  $what =~ s/\s+/ /g;
  my $name = "$file: $what";
  $name .= " #" . $seen{$name} if $seen{$name}++;
  push @names, $name;
  return $#names;
}

# `condition` or, for one mutant each, false and true.
sub switched {
  my ($file, $kind, $condition, $loop) = @_;
  my $off = mutant($file, "$kind ($condition) never");
  return "(replicad_mutant != $off && ($condition))" if $loop;
  my $on = mutant($file, "$kind ($condition) always");
  return "(replicad_mutant == $on || (replicad_mutant != $off && ($condition)))";
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

# Positions of the semicolons in $text that stand in no braces: not those of a lambda's body.
sub semicolons {
  my ($text) = @_;
  my ($depth, @found) = (0);
  for (my $i = 0; $i < length $text; ++$i) {
    my $c = substr $text, $i, 1;
    ++$depth if $c eq '{';
    --$depth if $c eq '}';
    push @found, $i if $c eq ';' && $depth == 0;
  }
  return @found;
}

for my $source (@sources) {
  open my $in, '<', $source or die "$source: $!";
  my $text = do { local $/; <$in> };
  my $file = basename $source;
  my $result = "extern int replicad_mutant;\n";
  my $last = 0;
  while ($text =~ /\b(if|while) \(|\bconst bool (\w+) =\s/g) {
    my $begin = $+[0];
    my ($kind, $variable) = ($1, $2);
    my $line = substr($text, rindex($text, "\n", $-[0]) + 1, $-[0] - rindex($text, "\n", $-[0]) - 1);
    next if $line =~ m{//};
    if ($variable) {
      my $end = $begin + (semicolons(substr $text, $begin, 2000))[0];
      my $expression = substr $text, $begin, $end - $begin;
      $result .= substr($text, $last, $begin - $last) . switched($file, $variable, $expression, 0);
      $last = $end;
      pos($text) = $end;
      next;
    }
    my $end = closing($text, $begin - 1) - 1;
    my $condition = substr $text, $begin, $end - $begin;
    if (my @parts = semicolons($condition)) {  # if (const auto x = f(); condition)
      $begin += $parts[-1] + 1;
      $condition = substr $text, $begin, $end - $begin;
    }
    next if $condition =~ /(?<![=<>!])=(?!=)/;  # a declaration
    $condition =~ s/^\s+//;
    $result .= substr($text, $last, $begin - $last) . switched($file, $kind, $condition, $kind eq 'while');
    $last = $end;
  }
  $result .= substr $text, $last;
  open my $copy, '>', "$out/$file" or die "$out/$file: $!";
  print $copy $result;
}

open my $list, '>', "$out/mutants.txt" or die "$out/mutants.txt: $!";
print $list "$_\t$names[$_]\n" for 0 .. $#names;
open my $switch, '>', "$out/mutant_switch.cpp" or die "$out/mutant_switch.cpp: $!";
print $switch <<'END';
#include <cstdlib>
extern int replicad_mutant;
int replicad_mutant = [] {
  const char* number = std::getenv("RD_MUTANT");
  return number == nullptr ? -1 : std::atoi(number);
}();
END
